"""Parameters and gradients by name, of a module, a dict or a list, and those of its head."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.observation import Head, HeadGradient
from labelleak.training import LocalTraining
from labelleak.updates.heads import by_bare_name, parameter_name, strip_wrappers
from labelleak.updates.layout import as_torch, matched_in_order, names_in_order
from labelleak.updates.one_logit import gradients_of_two, observed_of_two, rows_of_two
from labelleak.updates.pixels import (
    as_matrix,
    check_reads_pixels,
    is_convolution,
    observed_of_pixels,
)

StateDict = Mapping[str, Tensor]
# Tensors of torch, or arrays of NumPy or of whatever makes one (JAX, TensorFlow): by name, the
# names nested as those of Flax may be, or in order.
Values = Mapping[str, Any] | Sequence[Any]

_DEEPEST = 20


def parameters_of(model: nn.Module | Values) -> dict[str, Tensor]:
    """The parameters of a module, or the tensors of a state dict, by bare name as torch has them.

    Raises:
        InvalidObservation: An array is no array of numbers.
    """
    if isinstance(model, nn.Module):
        named = model.named_parameters(remove_duplicate=False)
        return by_bare_name({name: value.detach() for name, value in named})
    tensors = flat_tensors(model) if isinstance(model, Mapping) else in_order(model, None)
    return by_bare_name(turned(tensors))


def flat_tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """All that are tensors or arrays, as tensors by name; what is nested has dots in its name.

    Raises:
        InvalidObservation: An array is no array of numbers, or dicts are nested without end.
    """
    return {name: as_tensor(name, value) for name, value in _flat(values, "", _DEEPEST)}


def _flat(values: Mapping[Any, Any], prefix: str, deepest: int) -> Iterator[tuple[str, Any]]:
    if not deepest:
        raise InvalidObservation("tensors by name are nested too deeply: pass a flat dict of them")
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.", deepest - 1)
        elif isinstance(value, Tensor) or hasattr(value, "__array__"):
            yield f"{prefix}{key}", value


def in_order(values: Sequence[Any], model: Mapping[str, Sequence[int]] | None) -> dict[str, Tensor]:
    """Tensors or arrays in the order of a model's state dict, by its names.

    Args:
        values: One for each of its tensors.
        model: Shape of every tensor of the model by name; None where there are no names.

    Raises:
        InvalidObservation: Their number or a shape is another one.
    """
    tensors = [as_tensor(f"array {number}", value) for number, value in enumerate(values)]
    shapes = [tensor.shape for tensor in tensors]
    names = names_in_order(shapes) if model is None else matched_in_order("update", shapes, model)
    return dict(zip(names, tensors, strict=True))


def turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by torch's names, kernels of Keras and Flax transposed; they share memory."""
    stored = as_torch({name: value.shape for name, value in tensors.items()})
    return {
        plain: tensors[kept.name].permute(kept.axes(tensors[kept.name].ndim))
        if kept.is_kernel
        else tensors[kept.name]
        for plain, kept in stored.items()
    }


def as_tensor(what: str, value: Any) -> Tensor:
    """A tensor or an array as a tensor without history; it shares memory where it can.

    Raises:
        InvalidObservation: It is an array of something else than numbers.
    """
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    array = np.asarray(value)
    try:
        if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
            # bfloat16 of JAX, which NumPy does not have itself and keeps as two bytes.
            bits = np.require(array, requirements=["C", "W"]).view(np.int16)
            return torch.from_numpy(bits).view(torch.bfloat16)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise InvalidObservation(
            f"{what} is an array of {array.dtype}: an array of floating-point numbers is needed "
            "(float16, bfloat16, float32 or float64)"
        ) from None


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The model that a wrapper holds, in which names are as `by_bare_name` makes them."""
    names = [name for name, _ in model.named_parameters()]
    inside = model
    for name, bare in list(strip_wrappers(names).items())[:1]:
        for part in name.removesuffix(bare).split(".")[:-1]:
            inside = inside.get_submodule(part)
    return inside


def head_of(parameters: StateDict, layer: str) -> Head:
    """The head of that name, with its bias where there is one; of one logit that of two classes.

    The weight of a 1x1 convolution is read as the matrix that it is for every pixel.
    """
    bias = parameters.get(parameter_name(layer, "bias"))
    weight = as_matrix(parameters[parameter_name(layer, "weight")].detach())
    bias = None if bias is None else bias.detach()
    if is_one_logit(parameters, layer):
        weight, bias = rows_of_two(weight), None if bias is None else rows_of_two(bias)
    return Head(weight, bias, name=layer, per_pixel=is_convolution(parameters, layer))


def is_one_logit(parameters: StateDict, layer: str) -> bool:
    """Whether the layer of that name puts out one logit."""
    weight = parameters[parameter_name(layer, "weight")]
    return weight.ndim >= 2 and weight.shape[0] == 1


def gradient_of(gradients: StateDict, head: Head, *, one_logit: bool = False) -> HeadGradient:
    """The gradient of a head; where only that of its bias was sent, with a weight of zeros.

    Args:
        gradients: By name.
        head: The head.
        one_logit: Whether it is one logit, read as two classes.

    Raises:
        InvalidObservation: It was not sent.
    """
    layer = head.name or ""
    weight, bias = (gradients.get(parameter_name(layer, kind)) for kind in ("weight", "bias"))
    if weight is None and bias is not None and head.bias is not None:
        # Zeros that take no memory.
        weight = bias.new_zeros(()).expand(head.weight.shape)
    if weight is None:
        raise InvalidObservation(
            f"there is no gradient for {parameter_name(layer, 'weight')}: names do not match, or "
            "the final layer is frozen; the update holds "
            + (", ".join(list(gradients)[-4:]) or "nothing")
        )
    weight = as_matrix(weight) if head.per_pixel else weight
    if one_logit:
        weight = gradients_of_two(weight) if weight.shape[0] == 1 else weight
        bias = None if bias is None else gradients_of_two(bias)
    return HeadGradient(weight=weight, bias=bias, zeros_are_sent=one_logit)


def observed_fields(
    head: Head, layer: str, one_logit: bool, fields: dict[str, Any]
) -> dict[str, Any]:
    """Fields of an `Observation` of that head, as those of pixels and of two classes.

    Args:
        head: As it is read.
        layer: Its name.
        one_logit: Whether it is one logit, read as two classes.
        fields: As told, with loss and recipe.

    Raises:
        InvalidObservation: What was told cannot be read of such a head.
    """
    if head.per_pixel:
        model = fields.get("model")
        if model is not None:
            check_reads_pixels(model.get_submodule(layer), layer)
        told = fields.get("training") or LocalTraining()
        training = told.resolved(fields.get("instances"), one_step=True)
        fields = observed_of_pixels(layer, **{**fields, "training": training})
    return observed_of_two(layer, **fields) if one_logit else fields
