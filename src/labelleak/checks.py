"""Checks of what a caller passes in: whole numbers, plain tensors, and words for what was wrong."""

import operator

import torch
from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.numerics import DTYPES

INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Integer formats in which class indices may come."""


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
