"""The networks by name, built reproducibly."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from labelleak.lab.networks._layers import ImageShape
from labelleak.lab.networks.fcn import FCN
from labelleak.lab.networks.lenet import LeNet5
from labelleak.lab.networks.resnet import ResNet
from labelleak.lab.networks.vgg import VGG


@dataclass(frozen=True)
class _Network:
    make: Callable[..., nn.Module]
    options: tuple[str, ...]
    """Names of the options that the network offers."""
    traits: Mapping[str, object]
    """Values of the options that it does not offer."""


def _fcn(layers: int) -> _Network:
    return _Network(partial(FCN, layers), ("activation",), {"batchnorm": False, "dropout": 0.0})


def _vgg(depth: int) -> _Network:
    return _Network(partial(VGG, depth), ("dropout",), {"activation": "relu", "batchnorm": True})


def _resnet(depth: int) -> _Network:
    traits = {"activation": "relu", "batchnorm": True, "dropout": 0.0}
    return _Network(partial(ResNet, depth), ("stem",), traits)


_NETWORKS = {
    **{f"fcn-{layers}": _fcn(layers) for layers in (2, 3, 4, 5, 6)},
    "lenet5": _Network(LeNet5, ("activation", "batchnorm"), {"dropout": 0.0}),
    **{f"vgg{depth}": _vgg(depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50, 101, 152)},
}


_FCN = r"fcn-([1-9][0-9]{0,2})"


def names() -> tuple[str, ...]:
    """The names of the paper's networks.

    Returns:
        `fcn-2` to `fcn-6`, `lenet5`, `vgg11` to `vgg19`, `resnet18` to `resnet152`. `build` takes
        each of them, and `fcn-N` of any other number N of layers up to 999.

    Examples:
        >>> from labelleak.lab import networks
        >>> "lenet5" in networks.names()
        True
    """
    return tuple(_NETWORKS)


def build(
    name: str,
    *,
    classes: int,
    image_shape: ImageShape,
    activation: str | None = None,
    batchnorm: bool | None = None,
    dropout: float | None = None,
    stem: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Builds an untrained network of the paper.

    None is an option's default. An option that a network does not offer may only be given with the
    value that the network has, such as `batchnorm=True` for a ResNet.

    Args:
        name: One of `names()`, or `fcn-N` for any N from 1 to 999.
        classes: Number of classes; at least 2.
        image_shape: Channels, height and width of the input, in pixels. LeNet-5 needs at least
            16x16, VGG 32x32; the others take any size.
        activation: FCN and LeNet-5 have `relu` (default), `swish` or `leaky_relu`; the others
            `relu`.
        batchnorm: LeNet-5: whether BatchNorm follows each convolution (default: no). FCN has none,
            VGG and ResNet always have it.
        dropout: VGG: probability with which training drops a feature of the two wide layers, in
            [0, 1) (default: 0, which is no dropout). The others have none.
        stem: ResNet: `paper` (default), a 3x3 convolution of stride 1 without pooling; or
            `imagenet`, a 7x7 convolution and a max pooling, each of stride 2. The others have none.
        seed: Seed of the initial weights, any 64-bit integer. It gives the same weights on any
            device, and leaves PyTorch's random state unchanged. None draws from that state.

    Returns:
        The network, in training mode, on PyTorch's default device.

    Raises:
        ValueError: The network is unknown, or it does not offer an option or a value.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023.

    Examples:
        >>> from labelleak.lab import networks
        >>> model = networks.build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=0)
        >>> model(__import__("torch").zeros(2, 1, 28, 28)).shape[1]
        10
    """
    network = _network(name)
    given = {"activation": activation, "batchnorm": batchnorm, "dropout": dropout, "stem": stem}
    options = {}
    for option, value in given.items():
        if option in network.options and value is not None:
            options[option] = value
        elif value is not None and value != network.traits.get(option):
            raise ValueError(
                f"{name} cannot have {option}={value!r}: its options are "
                f"{', '.join(network.options)}"
            )
    make = partial(network.make, classes=classes, image_shape=image_shape, **options)
    return make() if seed is None else seeded(make, seed)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network whose initial weights a seed decides, the same on any device.

    Args:
        make: Makes it with PyTorch's random numbers.
        seed: Any 64-bit integer.

    Returns:
        The network, on PyTorch's default device; the random state is unchanged.
    """
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would seed the accelerators, too, permanently.
        torch.default_generator.manual_seed(seed)
        model = make()
    return model.to(device)


def is_own_network(name: str) -> bool:
    """Whether `build` makes a network of that name."""
    return name in _NETWORKS or re.fullmatch(_FCN, name) is not None


def _network(name: str) -> _Network:
    if name in _NETWORKS:
        return _NETWORKS[name]
    if layers := re.fullmatch(_FCN, name):
        return _fcn(int(layers[1]))
    others = ", ".join(known for known in _NETWORKS if not known.startswith("fcn-"))
    raise ValueError(f"unknown network {name!r}: choose one of fcn-N (N from 1 to 999), {others}")
