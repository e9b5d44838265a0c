"""Checks of what a caller passes in: whole numbers, plain tensors, and words for what was wrong."""

import math
import operator

import torch
from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.numerics import DTYPES

INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Integer formats in which class indices may come."""

# Largest magnitude of an entry: that of single precision. Powers of larger ones leave double.
_MOST = torch.finfo(torch.float32).max


def check_tensor(what: str, value: object) -> None:
    """Refuse what is no tensor.

    Raises:
        InvalidObservation: It is something else.
    """
    if not isinstance(value, Tensor):
        raise InvalidObservation(
            f"{what} is a {type(value).__name__}: a tensor is needed (torch.as_tensor makes one)"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds floating-point numbers to compute with: dense, in memory, 16 to 64 bits."""
    return (
        tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.dtype in DTYPES
    )


def whole_number(what: str, value: object) -> int:
    """The number as an `int`, whatever integer type it came as.

    Raises:
        InvalidObservation: It is no whole number of at least 1.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidObservation(f"{what} {value!r}: it must be a whole number, at least 1")
    if number < 1:
        raise InvalidObservation(f"{what} {number}: it must be at least 1")
    return number


def kind_of(tensor: Tensor) -> str:
    """Its dtype, and where and how it is stored, in words: ``"torch.float32 (strided, cpu)"``."""
    layout = str(tensor.layout).removeprefix("torch.")
    return f"{tensor.dtype} ({layout}, {tensor.device})"


def shape_of(tensor: Tensor) -> str:
    """Its shape in words: ``"10x300"``."""
    return "x".join(str(size) for size in tensor.shape) or "a single number"


def check_layer(what: str, weight: Tensor, bias: Tensor | None) -> dict[str, float]:
    """Refuse weight and bias that are none of a layer with two classes or more.

    Args:
        what: What they are of, for messages.
        weight: Shape (classes, features).
        bias: Shape (classes,), or None.

    Returns:
        Largest magnitude of an entry of ``weight``, and of ``bias`` where there is one.

    Raises:
        InvalidObservation: They are not.
    """
    check_tensor(f"the {what}'s weight", weight)
    if weight.ndim != 2:
        raise InvalidObservation(
            f"the {what}'s weight is {shape_of(weight)}: a matrix classes x features is needed"
        )
    if weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InvalidObservation(
            f"the {what}'s weight is {shape_of(weight)}: at least two classes and one feature are "
            "needed"
        )
    tensors = {"weight": weight}
    if bias is not None:
        check_tensor(f"the {what}'s bias", bias)
        if bias.shape != weight.shape[:1]:
            raise InvalidObservation(
                f"the {what}'s bias is {shape_of(bias)} beside a weight of {shape_of(weight)}: "
                f"{weight.shape[0]} entries are needed"
            )
        if bias.device != weight.device:
            raise InvalidObservation(
                f"the {what}'s weight is on {weight.device} and its bias on {bias.device}"
            )
        tensors["bias"] = bias
    found = dict[str, float]()
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise InvalidObservation(
                f"the {what}'s {name} is {kind_of(tensor)}: a plain tensor of floating-point "
                "numbers is needed (16 bits or more)"
            )
        largest = found[name] = _largest_entry(tensor)
        if not largest <= _MOST:
            raise InvalidObservation(
                f"the {what}'s {name} has "
                + (
                    f"entries of {largest:.0e}: at most {_MOST:.0e} can be read"
                    if math.isfinite(largest)
                    else "NaN or infinite entries"
                )
                + ": the update is broken"
            )
    return found


def _largest_entry(tensor: Tensor) -> float:
    """Largest magnitude of an entry, NaN where there is one; without a copy of a large head."""
    low, high = tensor.detach().aminmax()
    return float(torch.maximum(-low, high))
