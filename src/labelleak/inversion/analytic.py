"""Read an image off the gradient of a fully connected first layer."""

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
    """Divide the gradient of the first layer's weight by that of its bias; nothing is searched for.

    For ``y = W x + b`` row i of the weight's gradient is the mean of ``d_i x`` over the batch, with
    ``d_i`` the derivative of the loss by ``y_i``. Entry i of the bias's gradient is the mean of
    ``d_i``. Their quotient is the input itself for one sample, and a weighted mean of the inputs
    for several.

    References:
        Geiping et al., "Inverting gradients", NeurIPS 2020, proposition 3.1 and theorem 1 of the
        arXiv version; Phong et al., "Privacy-preserving deep learning", IEEE TIFS 2018.

    Examples:
        >>> import torch, labelleak
        >>> from labelleak.inversion import Analytic, invert
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
        >>> image, label = torch.rand(1, 1, 2, 2), torch.tensor([1])
        >>> loss = torch.nn.functional.cross_entropy(model(image), label)
        >>> gradients = torch.autograd.grad(loss, list(model.parameters()))
        >>> seen = labelleak.observe(model, gradients, batch_size=1)
        >>> found = invert(seen, Analytic(), image_shape=(1, 2, 2))
        >>> torch.allclose(found.images, image, atol=1e-4)
        True
    """

    name = "analytic"


def read_first_layer(task: Task) -> Float[Tensor, "batch channels height width"]:
    """Restore inputs from the gradient of the first layer.

    Args:
        task: The network and its gradient.

    Returns:
        Inputs of the network. For a batch of one the input is exact. For a larger batch each entry
        is a weighted mean of the batch, by one of the neurons with the largest bias gradients.

    Raises:
        InvalidObservation: The first layer is not fully connected with a bias, or its bias gradient
            is zero.
    """
    name = _first_layer(task)
    weight, bias = task.gradients[f"{name}.weight"], task.gradients[f"{name}.bias"]
    weight, bias = weight.double(), bias.double()
    found = min(task.batch_size, int(bias.count_nonzero()))
    if not found:
        raise InvalidObservation(f"the gradient of {name}.bias is zero: no neuron of it was active")
    rows = bias.abs().sort(descending=True, stable=True).indices[:found]
    # With fewer active neurons than images the strongest are repeated.
    rows = rows.repeat(math.ceil(task.batch_size / found))[: task.batch_size]
    quotients = weight[rows] / bias[rows, None]
    return quotients.reshape(task.batch_size, *task.image_shape).to(task.dtype)


def _first_layer(task: Task) -> str:
    """Name of the linear layer with a bias that takes the flattened image."""
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
