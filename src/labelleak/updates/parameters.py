"""Parameters and gradients by name, of a module or a state dict, and those of its head."""

from collections.abc import Mapping

from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.observation import Head, HeadGradient
from labelleak.updates.heads import parameter_name, strip_wrappers

StateDict = Mapping[str, Tensor]


def parameters_of(model: nn.Module | StateDict) -> dict[str, Tensor]:
    """The parameters of a module, or the tensors of a state dict, by name."""
    if isinstance(model, nn.Module):
        return {name: value.detach() for name, value in model.named_parameters()}
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The model that a wrapper holds, in which names are as `by_bare_name` makes them."""
    names = [name for name, _ in model.named_parameters()]
    inside = model
    for name, bare in list(strip_wrappers(names).items())[:1]:
        for part in name.removesuffix(bare).split(".")[:-1]:
            inside = inside.get_submodule(part)
    return inside


def head_of(parameters: StateDict, layer: str) -> Head:
    """The head of that name, with its bias where there is one."""
    bias = parameters.get(parameter_name(layer, "bias"))
    return Head(
        weight=parameters[parameter_name(layer, "weight")].detach(),
        bias=None if bias is None else bias.detach(),
        name=layer,
    )


def gradient_of(gradients: StateDict, layer: str) -> HeadGradient:
    """The gradient of the head of that name.

    Raises:
        InvalidObservation: It was not sent.
    """
    weight = gradients.get(parameter_name(layer, "weight"))
    if weight is None:
        raise InvalidObservation(
            f"there is no gradient for {parameter_name(layer, 'weight')}: names do not match, or "
            "the final layer is frozen; the update holds "
            + (", ".join(list(gradients)[-4:]) or "nothing")
        )
    return HeadGradient(weight=weight, bias=gradients.get(parameter_name(layer, "bias")))
