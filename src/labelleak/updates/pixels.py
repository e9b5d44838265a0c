"""A head that is a 1x1 convolution, read as a linear layer of which every pixel is a sample."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.hooks import recorded
from labelleak.isolation import isolated
from labelleak.loss import Loss
from labelleak.training import LocalTraining


def as_matrix(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as (classes, features); a matrix stays as it is."""
    return weight.flatten(1) if weight.ndim > 2 else weight


def is_convolution(parameters: Mapping[str, Tensor], layer: str) -> bool:
    """Whether the layer of that name is a convolution."""
    return parameters[f"{layer}.weight" if layer else "weight"].ndim > 2


def observed_of_pixels(
    layer: str,
    *,
    loss: Loss,
    training: LocalTraining,
    instances: int | None = None,
    model: nn.Module | None = None,
    input_shape: tuple[int, ...] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Fields of an `Observation` of a 1x1 convolution: pixels are the samples.

    The batch size is told in samples, and becomes one of pixels. Where nobody told how many pixels
    a sample has, or some have no target, it is not known, and shares are.

    Args:
        layer: Name of the head.
        loss: With the number of pixels of one sample; 0 where the model may tell.
        training: The recipe, resolved.
        instances: Number of samples, or None.
        model: The network, if it is at hand.
        input_shape: Shape of one input, or None.
        **others: Fields that stay as they are.

    Raises:
        InvalidObservation: Auxiliary data, which no attack on pixels reads; or the model tells
            another number of pixels.
    """
    if others.get("auxiliary") is not None:
        raise InvalidObservation(
            "auxiliary data cannot be read beside a head of pixels (a 1x1 convolution): leave it "
            "out"
        )
    told = loss.pixels or None
    if model is not None and input_shape is not None:
        seen = _pixels_of(model, layer, input_shape)
        if told is not None and seen != told:
            raise InvalidObservation(
                f"the head puts out {seen} pixels for an input of shape {tuple(input_shape)}, and "
                f"pixels={told} was told"
            )
        told = seen
    some_left_out = loss.masked or loss.ignore_index is not None
    known = None if some_left_out else told
    return {
        **others,
        "loss": replace(loss, pixels=told or 0),
        "training": replace(training, batch_size=_times(training.batch_size, known)),
        "instances": _times(instances, known),
        "model": model,
        "input_shape": input_shape,
    }


def _times(samples: int | None, pixels: int | None) -> int | None:
    return None if samples is None or pixels is None else samples * pixels


def _pixels_of(model: nn.Module, layer: str, input_shape: tuple[int, ...]) -> int:
    """Number of pixels that the head puts out for one input."""
    like = next(model.parameters())
    with isolated(model), torch.random.fork_rng(devices=[]):
        model.eval()
        try:
            with recorded(model.get_submodule(layer)) as runs:
                model(like.new_zeros(1, *input_shape))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidObservation(
                f"an input of shape {tuple(input_shape)} does not go through the model: "
                f"{(str(error).splitlines() or [''])[0]}"
            ) from None
    if len(runs) != 1 or not isinstance(runs[0].left, Tensor):
        raise InvalidObservation(f"layer {layer!r} does not put out one map for an input")
    return runs[0].left[0, 0].numel()


def check_reads_pixels(layer: nn.Module, name: str) -> None:
    """Refuse a convolution that is no linear layer on every pixel.

    Raises:
        InvalidObservation: It has groups, or padding that adds pixels.
    """
    groups, padding = getattr(layer, "groups", 1), getattr(layer, "padding", 0)
    padded = isinstance(padding, tuple) and any(padding)
    if groups != 1 or padded:
        raise InvalidObservation(
            f"layer {name!r} is a 1x1 convolution with "
            + ("groups" if groups != 1 else "padding")
            + ": only one that maps all features of every pixel to its logits can be read"
        )
