"""Whether counts can be told for sure: their own errors against the distance of other counts."""

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import chdtrc, ndtr
from torch import Tensor

from labelleak.projection import project_to_counts
from labelleak.restoration import Restoration

TRUSTED = 0.2
"""Root mean square error of a count above which rounding is little better than chance."""

# So improbable is a distance that is not put down to chance.
_CHANCE = 1e-3
# A count nearer to zero than this is that of an absent class.
_ABSENT = 0.1
# Largest credible distance from feasible counts: in claimed standard errors, plus a margin.
_CREDIBLE_ERRORS, _CREDIBLE_MARGIN = 2.0, 0.05
# Floor of an error, for rounding errors of the gradient.
_LEAST_ERROR = 1e-3
# The same where an estimate is held against its own counts.
_LEAST_TOLD = 0.02


def probability_right(
    raw: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"],
    counts: Int[Tensor, " classes"],
) -> float:
    """Probability that the feasible counts nearest to estimates are the true ones.

    For normal errors, and whole numbers that are all as probable beforehand.

    Args:
        raw: Real-valued counts, float64, shape (classes,).
        errors: Their standard errors, likewise.
        counts: Those nearest counts, int64, likewise.
    """
    variances = errors.clamp_min(_LEAST_ERROR).square()
    own = (raw - counts).square()
    # Log odds of the next count above and below, which is never below zero.
    odds = torch.zeros_like(raw)
    for step in (1, -1):
        other = (raw - counts - step).square()
        odds += torch.exp((own - other) / (2.0 * variances)).where(counts + step >= 0, 0.0)
    return float(torch.exp(-odds.log1p().sum()))


def share_right(errors: Float[Tensor, " classes"]) -> float:
    """Share of the counts that rounding is expected to get right, for normal errors.

    Args:
        errors: Standard errors of the counts, shape (classes,).
    """
    return float(torch.erf(0.5 / (math.sqrt(2.0) * errors.clamp_min(1e-9))).mean())


def agrees(distance: float, errors: Float[Tensor, " classes"]) -> bool:
    """Whether counts lie no farther from feasible ones than their standard errors let expect.

    Args:
        distance: As of `distance_from_feasible`.
        errors: The standard errors, shape (classes,).
    """
    claimed = float(errors.square().mean().sqrt())
    return distance < _CREDIBLE_ERRORS * claimed + _CREDIBLE_MARGIN


def contradicts(
    raw: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"],
    counts: Int[Tensor, " classes"],
) -> bool:
    """Whether estimates differ from counts by more than chance explains.

    Either the largest difference tells it, or all of them together. Counts may be rounded, so that
    half a sample is no difference.

    Args:
        raw: Real-valued counts, float64, shape (classes,).
        errors: Their standard errors, likewise.
        counts: What another attack counted, int64, likewise.
    """
    apart = ((raw - counts).abs() - 0.5).clamp_min(0.0) / errors.clamp_min(_LEAST_ERROR)
    return _by_accident(apart) < _CHANCE / 2


def errors_explain(
    raw: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"],
    counts: Int[Tensor, " classes"],
) -> bool:
    """Whether errors explain how far estimates are from their counts.

    Another scale or temperature leaves estimates between whole counts.

    Args:
        raw: Real-valued counts, float64, shape (classes,).
        errors: Their standard errors, likewise.
        counts: Those that are told of them, int64, likewise.
    """
    apart = (raw - counts).abs() / errors.clamp_min(_LEAST_TOLD)
    return _by_accident(apart) >= _CHANCE


def _by_accident(apart: Float[Tensor, " classes"]) -> float:
    """Probability of distances, in standard errors: of the largest, or of all together, if less."""
    largest = 2.0 * len(apart) * ndtr(-float(apart.max()))
    together = chdtrc(len(apart) - 1, float(apart.square().sum()))
    return float(min(largest, together))


def distance_from_feasible(raw: Float[Tensor, " classes"], total: int) -> float:
    """Root mean square distance from the nearest feasible counts.

    Feasible are whole counts, non-negative and of the right sum.
    """
    return distance_between(raw, project_to_counts(raw, total))


def distance_between(raw: Float[Tensor, " classes"], counts: Int[Tensor, " classes"]) -> float:
    """Root mean square distance of estimates from counts."""
    return float((raw - counts).square().mean().sqrt())


def distance_of_told(found: Restoration) -> float:
    """Root mean square distance from whole counts, of the classes that are told to be there.

    That of all classes is small where many are absent, however wrong the others are.
    """
    raw, told = found.raw, _told(found)
    assert raw is not None, "an attack that estimates counts"
    apart = (raw - raw.round()).abs()
    if found.counts is not None:
        apart = torch.maximum(apart, (raw - found.counts).abs())
    return float(apart[told].square().mean().sqrt()) if bool(told.any()) else 0.0


def are_whole(found: Restoration) -> bool:
    """Whether the counts that are told are nearer to whole numbers than chance explains."""
    return distance_of_told(found) < by_chance(int(_told(found).sum()) - 1)


def nearly_whole(values: Float[Tensor, " classes"]) -> bool:
    """Whether numbers of sum zero, less those near zero, are whole beyond what chance explains."""
    told = values[values.abs() > _ABSENT]
    distance = float((told - told.round()).square().mean().sqrt()) if len(told) else 0.0
    return distance < by_chance(len(told) - 1)


def _told(found: Restoration) -> Bool[Tensor, " classes"]:
    assert found.raw is not None, "an attack that estimates counts"
    return (found.raw.abs() > _ABSENT) | found.present


def by_chance(free: int, length: float = 0.0) -> float:
    """Root mean square distance from whole numbers that chance undercuts once in a thousand times.

    Estimates that mean nothing are spread evenly between whole numbers. The share of them that lies
    within a distance r of whole numbers is the volume of a ball of radius r; where the nearest of
    all estimates along a path is taken, that of a tube about the path.

    Args:
        free: Number of counts that the others do not determine.
        length: Length of the path, in counts; 0 for a single estimate.

    Returns:
        At most `TRUSTED`; 0 where even the smallest distance would be chance.
    """
    across = free - 1 if length else free
    if across < 1:
        return 0.0
    log_ball = across / 2 * math.log(math.pi) - math.lgamma(across / 2 + 1)
    log_radius = (math.log(_CHANCE / max(length, 1.0)) - log_ball) / across
    return min(TRUSTED, math.exp(log_radius) / math.sqrt(free + 1))
