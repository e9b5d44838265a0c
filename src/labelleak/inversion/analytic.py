"""Reading an image off the gradient of a first layer that is fully connected."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.hooks import hooked
from labelleak.inversion.task import Task


@dataclass(frozen=True)
class Analytic:
    """The quotient of weight and bias gradients of the first layer; nothing is searched for.

    For ``y = W x + b`` row i of the weight's gradient is the mean over the batch of ``d_i x`` and
    the bias's that of ``d_i``: their quotient is the input itself if there is one sample, and a
    weighted mean of the inputs otherwise.

    References:
        Geiping et al., "Inverting gradients", NeurIPS 2020, proposition 3.1 and theorem 1 of the
        arXiv version; Phong et al., "Privacy-preserving deep learning", IEEE TIFS 2018.
    """

    name = "analytic"


def read_first_layer(task: Task) -> Float[Tensor, "batch channels height width"]:
    """The inputs that the first layer's gradient gives away.

    Args:
        task: The network and its gradient.

    Returns:
        Inputs of the network: exact for a batch of one; else a weighted mean of the batch for each
        of the neurons whose bias gradient is largest, one for each image.

    Raises:
        InvalidObservation: The images do not go straight into a fully connected layer with a bias,
            or nothing came back to it.
    """
    name = _first_layer(task)
    weight, bias = task.gradients[f"{name}.weight"], task.gradients[f"{name}.bias"]
    weight, bias = weight.double(), bias.double()
    found = min(task.batch_size, int(bias.count_nonzero()))
    if not found:
        raise InvalidObservation(f"the gradient of {name}.bias is zero: no neuron of it was active")
    rows = bias.abs().sort(descending=True, stable=True).indices[:found]
    # Fewer active neurons than images: the strongest stand for the others.
    rows = rows.repeat(math.ceil(task.batch_size / found))[: task.batch_size]
    quotients = weight[rows] / bias[rows, None]
    return quotients.reshape(task.batch_size, *task.image_shape).to(task.dtype)


def _first_layer(task: Task) -> str:
    """The name of the linear layer that takes the flattened image, with its bias."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((1, *task.image_shape), generator=generator)
    images = images.to(task.device, task.dtype)
    names: dict[nn.Module, str] = {
        module: name
        for name, module in task.model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.bias" in task.gradients
    }
    taking: list[str] = []

    def note(layer: nn.Module, entered: Tensor) -> None:
        if torch.equal(entered, images.flatten(1)):
            taking.append(names[layer])

    with torch.no_grad(), hooked(*names, entering=note):
        task.model(images)
    if not taking:
        raise InvalidObservation(
            "the analytic method needs a network whose first layer is fully connected, with a "
            "bias: no such layer takes in the images"
        )
    return taking[0]
