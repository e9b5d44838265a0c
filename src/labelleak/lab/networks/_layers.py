"""Shared by the networks: activations by name, checks of sizes, initial weights."""

from collections.abc import Callable

from torch import nn

ImageShape = tuple[int, int, int]
"""Channels, height and width of one input image, in pixels."""

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def activation_layer(name: str) -> nn.Module:
    """Makes an activation by its name.

    Args:
        name: `relu`; `swish`, which is x * sigmoid(x); or `leaky_relu` with negative slope 0.01.

    Returns:
        A module without parameters. It is not in place, so that hooks may keep its input.

    Raises:
        ValueError: There is no activation of that name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def check_sizes(network: str, classes: int, image_shape: ImageShape, smallest: int) -> None:
    """Checks the sizes of a network.

    Args:
        network: The name of the network, for the message.
        classes: Number of classes; 1 for one logit.
        image_shape: Channels, height and width of the input, in pixels.
        smallest: Smallest height and width that the network's poolings allow, in pixels.

    Raises:
        ValueError: There is no class, the shape is not three positive numbers, or
            the image is smaller than the network can take.
    """
    if classes < 1:
        raise ValueError(f"{network} needs at least 1 class, not {classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape is (channels, height, width), three positive numbers, not {image_shape}"
        )
    if min(image_shape[1:]) < smallest:
        height, width = image_shape[1:]
        raise ValueError(
            f"{network} needs images of at least {smallest}x{smallest} pixels, not {height}x{width}"
        )


def initialize_convolutions(network: nn.Module) -> None:
    """Initializes the weights of all convolutions of a network, in place.

    Weights are normal with mean 0 and variance 2 / (output channels * kernel area): He's rule for
    ReLU, counted over the outputs ("fan out"), as in iLRG's networks (Ma et al., ICLR 2023) and in
    torchvision's VGGs and ResNets. Biases, fully connected layers and BatchNorm keep PyTorch's
    defaults. The rule matters for untrained networks: in evaluation mode their BatchNorm does not
    normalize yet, and with PyTorch's default the signal of a deep network fades.

    Args:
        network: The network with the `Conv2d` layers.

    References:
        He et al., "Delving deep into rectifiers", ICCV 2015, section 2.2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
