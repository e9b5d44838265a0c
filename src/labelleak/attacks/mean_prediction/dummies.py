"""Inputs that resemble images in nothing but their smoothness."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.errors import MissingKnowledge

# Share of the power that all channels have in common, as in photographs.
_COMMON = 0.9
_SIDES = (32, 28, 64, 96, 224, 128, 256)


def dummy_inputs(
    shape: tuple[int, ...], number: int, slopes: Sequence[float], generator: torch.Generator
) -> list[Float[Tensor, "number *shape"]]:
    """Gaussian noise of mean zero and mean square one with a spectrum like that of images.

    Amplitudes fall as ``frequency ** -slope`` (Field 1987: about 1 in natural images). The noise is
    cut out of a field of twice the size, so that its ends do not meet. Inputs without two
    dimensions of space are independent in every entry.

    Args:
        shape: Of one input: (channels, height, width), or anything else.
        number: How many.
        slopes: Powers of the frequency, positive.
        generator: Source of the noise, on the CPU.

    Returns:
        For every slope float32, shape (number, *shape), made of the same white noise.
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


def guessed_shape(model: nn.Module, layer: nn.Module) -> tuple[int, ...]:
    """The shape of an input that a model takes whose first layer is known.

    The first square image of a usual size that goes through; for a fully connected layer one with
    as many entries as it has inputs, or a plain vector.

    Raises:
        MissingKnowledge: None does.
    """
    if isinstance(layer, nn.Linear):
        size = layer.in_features
        images = [(c, s, s) for c in (1, 3) if (s := math.isqrt(size // c)) ** 2 * c == size > c]
        candidates: list[tuple[int, ...]] = [*images, (size,)]
    elif isinstance(layer, nn.Conv2d):
        candidates = [(layer.in_channels, side, side) for side in _SIDES]
    else:
        candidates = []
    like = next(iter(layer.parameters()))
    for shape in candidates:
        try:
            model(like.new_zeros(2, *shape))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):
            continue
        return shape
    raise MissingKnowledge(
        "attack 'calibrated' needs the shape of the model's inputs (input_shape=(channels, height, "
        "width)) or auxiliary inputs (auxiliary=...)"
    )
