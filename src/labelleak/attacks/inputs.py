"""Inputs that the server holds or makes up: auxiliary data, noise, constants, smooth noise."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.errors import MissingKnowledge
from labelleak.observation import Auxiliary, Observation

Dummies = Literal["random", "zeros", "ones"]

# Share of the power that all color channels have in common, as in photographs.
_COMMON = 0.9
# Usual sides of square images, tried in this order.
_SIDES = (32, 28, 64, 96, 224, 128, 256)


def auxiliary_of(observation: Observation, *, every_class: bool = True) -> Auxiliary:
    """The auxiliary data, with at least one sample of every class unless told otherwise.

    Raises:
        MissingKnowledge: There is none, or a class has no sample in it.
    """
    auxiliary = observation.auxiliary
    if auxiliary is None:
        raise MissingKnowledge("auxiliary data is missing (auxiliary=Auxiliary(inputs, labels))")
    absent = (torch.bincount(auxiliary.labels, minlength=observation.classes) == 0).nonzero()[:, 0]
    if every_class and len(absent):
        listed = ", ".join(map(str, absent[:8].tolist())) + (", ..." if len(absent) > 8 else "")
        raise MissingKnowledge(
            f"the auxiliary data has no sample of {len(absent)} classes ({listed}): it needs at "
            "least one of every class"
        )
    return auxiliary


def dummies(observation: Observation, kind: Dummies, samples: int) -> Float[Tensor, "samples ..."]:
    """Made-up inputs: standard normal noise (the same at every call), zeros or ones.

    Raises:
        ValueError: No dummies of that kind, or none at all.
        MissingKnowledge: Nobody said what shape an input has.
    """
    if kind not in get_args(Dummies):
        raise ValueError(f"dummies {kind!r}: use {', '.join(map(repr, get_args(Dummies)))}")
    if samples < 1:
        raise ValueError(f"{samples} dummy inputs: there must be at least 1")
    shape = observation.input_shape
    if shape is None:
        if observation.auxiliary is None:
            raise MissingKnowledge("the shape of one input is missing (input_shape=...)")
        shape = tuple(observation.auxiliary.inputs.shape[1:])
    if kind == "random":
        return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    # All of them are equal, so one would do, but BatchNorm in training mode needs two.
    return torch.full((2, *shape), 0.0 if kind == "zeros" else 1.0)


def smooth_noise(
    shape: tuple[int, ...], number: int, slopes: Sequence[float], generator: torch.Generator
) -> list[Float[Tensor, "number *shape"]]:
    """Gaussian noise of mean zero and mean square one with a spectrum like that of images.

    Amplitudes fall as ``frequency ** -slope`` (Field 1987: about 1 in natural images). The noise is
    cut out of a field of twice the size, because a periodic one would have equal edges. Inputs
    without two spatial dimensions are white noise.

    Args:
        shape: Of one input: (channels, height, width), or anything else.
        number: How many.
        slopes: Powers of the frequency, positive.
        generator: Source of the noise, on the CPU.

    Returns:
        One batch per slope, float32, shape (number, *shape), filtered from the same white noise.
    """
    if len(shape) != 3 or min(shape[1:]) < 2:
        return [torch.randn(number, *shape, generator=generator)] * len(slopes)
    channels, height, width = shape
    across = torch.fft.rfftfreq(2 * width)[None, :]
    down = torch.fft.fftfreq(2 * height)[:, None]
    frequency = (across**2 + down**2).sqrt()
    frequency[0, 0] = torch.inf
    noise = torch.randn(number, channels, 2 * height, 2 * width, generator=generator)
    if channels > 1:
        common = torch.randn(number, 1, 2 * height, 2 * width, generator=generator)
        noise = math.sqrt(1.0 - _COMMON) * noise + math.sqrt(_COMMON) * common
    white = torch.fft.rfft2(noise)
    fields = []
    for slope in slopes:
        whole = torch.fft.irfft2(white * frequency**-slope, s=(2 * height, 2 * width))
        field = whole[..., :height, :width]
        fields.append(field / field.square().mean().sqrt())
    return fields


def guessed_shape(model: nn.Module, first: nn.Module, attack: str) -> tuple[int, ...]:
    """The shape of one input that a model takes, guessed from its first layer.

    It is the first square image of a usual size that goes through the model. For a fully connected
    layer it is an image with as many entries as the layer has inputs, or a vector.

    Args:
        model: The network, in evaluation mode or one whose buffers may be written to.
        first: Its first layer with weights.
        attack: Name of the attack, for the message.

    Raises:
        MissingKnowledge: No candidate goes through.
    """
    if isinstance(first, nn.Linear):
        size = first.in_features
        images = [(c, s, s) for c in (1, 3) if (s := math.isqrt(size // c)) ** 2 * c == size > c]
        candidates: list[tuple[int, ...]] = [*images, (size,)]
    elif isinstance(first, nn.Conv2d):
        candidates = [(first.in_channels, side, side) for side in _SIDES]
    else:
        candidates = []
    like = next(iter(first.parameters()))
    for shape in candidates:
        try:
            model(like.new_zeros(2, *shape))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):
            continue
        return shape
    raise MissingKnowledge(
        f"attack {attack!r} needs the shape of the model's inputs (input_shape=(channels, height, "
        "width)) or auxiliary inputs (auxiliary=...)"
    )
