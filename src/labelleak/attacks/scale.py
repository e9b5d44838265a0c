"""The factor between a gradient and that of the loss and batch size that were told."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.certainty import by_chance, distance_from_feasible
from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Restoration

# A factor this near to 1 is none.
_NONE = 0.05
# Steps along the path of factors, as a share of the distance that has to be found, and their most.
_STEP, _MOST_STEPS = 0.5, 20_000
# Least and largest factor that is looked for.
_LEAST, _LARGEST = 1e-6, 1e3
# Counts may be this far below zero.
_SLACK = 0.5
_MOST_ENTRIES = 1 << 24
# How many of the nearest factors are refined, how often, and distances that are equal.
_FINALISTS, _REFINEMENTS, _SAME = 8, 3, 1e-3


class Scale(NamedTuple):
    """A factor that brings the gradient to the scale that was told.

    Attributes:
        factor: Above 1 for a gradient that is too small.
        distance: Root mean square distance of its counts from feasible ones.
        is_confirmed: Whether chance does not explain so small a distance.
    """

    factor: float
    distance: float
    is_confirmed: bool


def fitting_scale(observation: Observation, found: Restoration) -> Scale | None:
    """The factor that makes all counts whole, where there is one.

    A factor changes the gradient as a whole, and not the mean prediction p. Only the right one
    makes ``n = K (p - f db)`` whole and non-negative. With two classes there is always one, and
    nothing confirms it.

    Args:
        observation: What the server sees, with a plain loss and a bias gradient.
        found: An estimate with real-valued counts and standard errors.

    Returns:
        The factor whose counts are nearest to feasible ones, and of several equally near the one
        nearest to 1; None where that is no other than 1, or nothing can be looked for.
    """
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if not observation.loss.is_plain or bias is None or raw is None or counts is None:
        return None
    classes, total = observation.classes, int(counts.sum())
    step = total * bias.double() / observation.scale
    even = raw + step
    # Beyond, some count would be negative.
    falling = step > 0
    most = float(((even + _SLACK) / step)[falling].min()) if bool(falling.any()) else 0.0
    most = min(max(most, _LEAST), _LARGEST)
    length = most * float(step.norm())
    radius = by_chance(classes - 1, max(length, 1.0)) * math.sqrt(classes)
    number = min(
        _MOST_STEPS, _MOST_ENTRIES // classes, math.ceil(length / max(_STEP * radius, 1e-2))
    )
    if number < 1:
        return None
    factors = most * torch.arange(1, number + 1, dtype=torch.float64, device=step.device) / number
    best = _nearest(even, step, factors, total)
    if best is None or abs(best.factor - 1.0) < _NONE:
        return None
    return best._replace(is_confirmed=best.distance < radius / math.sqrt(classes))


def _nearest(
    even: Float[Tensor, " classes"],
    step: Float[Tensor, " classes"],
    factors: Float[Tensor, " factors"],
    total: int,
) -> Scale | None:
    """The factor whose counts are nearest to feasible ones."""
    raw = even - factors[:, None] * step
    apart = (raw - raw.round().clamp_min(0.0)).square().mean(dim=1).sqrt()
    best: Scale | None = None
    for place in apart.argsort()[:_FINALISTS].tolist():
        factor = float(factors[place])
        for _ in range(_REFINEMENTS):
            counts = project_to_counts(even - factor * step, total)
            factor = float((even - counts) @ step / step.square().sum().clamp_min(1e-300))
        factor = max(factor, _LEAST)
        one = Scale(factor, distance_from_feasible(even - factor * step, total), False)
        if best is None or (one.distance, abs(math.log(factor))) < (
            best.distance - _SAME,
            abs(math.log(best.factor)),
        ):
            best = one
    return best


def scaled(observation: Observation, factor: float) -> Observation:
    """The observation of a gradient so many times larger."""
    gradient, gradients = observation.gradient, observation.gradients
    bias = gradient.bias
    return replace(
        observation,
        gradient=replace(
            gradient,
            weight=gradient.weight * factor,
            bias=None if bias is None else bias * factor,
            rounding=gradient.rounding * factor,
        ),
        gradients=None
        if gradients is None
        else {name: tensor * factor for name, tensor in gradients.items()},
    )
