"""What may be told of a loss: the options of each kind, and the values that they may have."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from labelleak.checks import check_tensor, shape_of
from labelleak.errors import InvalidObservation

Kind = Literal[
    "cross_entropy", "focal", "bce", "sigmoid_focal", "custom", "custom_labels", "mse", "cox"
]
Reduction = Literal["mean", "sum", "sample_mean"]

MULTI_LABEL: tuple[Kind, ...] = ("bce", "sigmoid_focal", "custom_labels")
"""Kinds that decide about every label by itself, with a sigmoid or a function of yours."""

CUSTOM: tuple[Kind, ...] = ("custom", "custom_labels")
"""Kinds that are a function of the user's."""

NAMED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind not in CUSTOM)
"""Kinds that a file, a message or an option can name."""

# What may be told of each kind beside its reduction.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("label_smoothing", "class_weights", "temperature", "ignore_index"),
    "focal": ("gamma", "class_weights", "temperature", "ignore_index"),
    "bce": ("positive_weights", "label_weights", "masked"),
    "sigmoid_focal": ("gamma", "alpha", "masked"),
    "custom": ("function",),
    "custom_labels": ("function",),
    "mse": (),
    "cox": (),
}
# What may be told of all.
_COMMON = ("pixels",)
# Of one sample.
_MOST_PIXELS = 2**31
_WEIGHTS = {
    "class_weights": "class weight",
    "positive_weights": "positive weight",
    "label_weights": "label weight",
}


def check_options(kind: str, reduction: str, told: Mapping[str, Any]) -> None:
    """Refuse what cannot be.

    Args:
        kind: The kind of loss.
        reduction: How samples are put together.
        told: The options that differ from their defaults, by name.

    Raises:
        InvalidObservation: No such kind or reduction, an option that the kind has not, or an
            impossible value.
    """
    if kind not in get_args(Kind):
        raise InvalidObservation(
            f"loss {kind!r:.80} cannot be read: use {' or '.join(map(repr, NAMED))}, or a function "
            "of yours with Loss.custom"
        )
    if reduction not in get_args(Reduction):
        raise InvalidObservation(f"reduction {reduction!r}: use 'mean' or 'sum', or 'sample_mean'")
    if kind in CUSTOM and not callable(told.get("function")):
        raise InvalidObservation(
            "a loss of your own is a function of logits and targets: Loss.custom(function)"
        )
    for name, value in told.items():
        if name not in (*_OPTIONS[kind], *_COMMON):
            owners = [repr(other) for other, names in _OPTIONS.items() if name in names]
            raise InvalidObservation(
                f"{name} is of {' or '.join(owners)}, and the loss is {kind!r}: it takes "
                f"{', '.join(_OPTIONS[kind])}"
            )
        if name in _WEIGHTS:
            _check_weights(name, value)
    _check_numbers(told)


def from_plain(told: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The arguments of a loss from plain data, with tensors for lists.

    Raises:
        InvalidObservation: A name is none that is known, or a list holds anything but numbers.
    """
    if told.get("kind") in CUSTOM or "function" in told:
        raise InvalidObservation(
            "a loss of your own is a function, which no file or policy can hold: pass "
            "Loss.custom(function) from Python"
        )
    if unknown := [name for name in told if name not in known]:
        raise InvalidObservation(
            f"{unknown[0]!r:.80} is nothing that is told of a loss: {', '.join(known)}"
        )
    return {
        name: _tensor_of(name, value) if isinstance(value, list) else value
        for name, value in told.items()
    }


def _tensor_of(name: str, values: list[Any]) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidObservation(f"{name}: a list of numbers is needed") from None


def check_targets_of_own(targets: object) -> None:
    """Refuse targets that a loss of the user's cannot have.

    Raises:
        InvalidObservation: They are neither of the two.
    """
    if targets not in ("classes", "label_sets"):
        raise InvalidObservation(f"targets {targets!r:.40}: use 'classes' or 'label_sets'")


def check_number_of_weights(told: Mapping[str, Tensor | None], outputs: int) -> None:
    """Refuse weights that are not as many as the head has outputs.

    Args:
        told: The weights of a loss by the name of the option.
        outputs: Number of classes, or of labels.

    Raises:
        InvalidObservation: There is not one weight for each.
    """
    for name, weights in told.items():
        if weights is not None and weights.shape != (outputs,):
            owners, each = ("classes", "class") if name == "class_weights" else ("labels", "label")
            raise InvalidObservation(
                f"{_WEIGHTS[name]}s {shape_of(weights)} for {outputs} {owners}: one weight per "
                f"{each}"
            )


def _check_weights(name: str, weights: object) -> None:
    check_tensor(name, weights)
    assert isinstance(weights, Tensor), "checked"
    text = _WEIGHTS[name]
    if weights.ndim != 1:
        each = "class" if name == "class_weights" else "label"
        raise InvalidObservation(f"{text}s {shape_of(weights)}: one weight per {each}")
    if not (torch.isfinite(weights).all() and (weights > 0).all()):
        raise InvalidObservation(f"{text}s must be positive and finite")


def _check_numbers(told: Mapping[str, Any]) -> None:
    for name in ("label_smoothing", "temperature", "gamma", "alpha"):
        value = told.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidObservation(f"{name} {value!r:.40}: a number is needed")
    smoothing, temperature = told.get("label_smoothing", 0.0), told.get("temperature", 1.0)
    if not 0.0 <= smoothing < 1.0:
        raise InvalidObservation(f"label smoothing {smoothing}: it must be at least 0 and below 1")
    if not 0.0 < temperature < math.inf:
        raise InvalidObservation(f"temperature {temperature}: it must be positive and finite")
    gamma, alpha = told.get("gamma"), told.get("alpha")
    if gamma is not None and not 0.0 <= gamma < math.inf:
        raise InvalidObservation(f"gamma {gamma}: it must be at least 0 and finite")
    if alpha is not None and not 0.0 < alpha < 1.0:
        raise InvalidObservation(f"alpha {alpha}: it must be above 0 and below 1")
    index = told.get("ignore_index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise InvalidObservation(f"ignore_index {index!r}: it must be a whole number")
    pixels = told.get("pixels")
    if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int)):
        raise InvalidObservation(f"pixels {pixels!r:.40}: it must be a whole number")
    if pixels is not None and not 0 <= pixels < _MOST_PIXELS:
        raise InvalidObservation(f"pixels {pixels}: it must be at least 0 and below 2**31")
