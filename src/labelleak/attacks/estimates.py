"""How far an estimate of the counts may be off, judged without the true counts."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.numerics import perplexity
from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

TRUSTED = 0.2
"""Root mean square error of a count above which rounding is little better than chance."""

# Errors below this one are equal: such counts round to the right ones, and the rest of the error
# may be rounding of the gradient, which must not choose between estimates.
_SAME_ERROR = 1e-3
# Least perplexity of an even mean prediction, relative to the number of classes. Below, the network
# is sure of some classes, and its mean prediction no longer follows from a mean embedding.
_FLAT = 0.85
# Down to this perplexity, an estimate is believed if its counts are this near to whole numbers:
# untrained networks whose embeddings are far from zero favor some classes, too.
_UNEVEN, _WHOLE = 0.5, 0.1
# A count nearer to zero than this is that of an absent class.
_ABSENT = 0.1
# Largest credible distance from feasible counts: in claimed standard errors, plus a margin.
_CREDIBLE_ERRORS, _CREDIBLE_MARGIN = 2.0, 0.05
# Least and largest factor by which clipping is assumed to scale, and how many factors are tried.
_LEAST_FACTOR = 1.1
_LARGEST_FACTOR = 30.0
_FACTORS = 500


@dataclass(frozen=True)
class Estimate:
    """Counts, and how far they are off, as far as that shows without the true counts.

    Counts are feasible if they are whole, non-negative and of the right sum.

    Attributes:
        found: The restoration.
        error: Root mean square error of a count; infinite if the attack's assumptions do not hold.
        distance: Root mean square distance from the nearest feasible counts.
        evenness: Perplexity of the mean prediction, relative to the number of classes; 1 for an
            attack without standard errors, which does not assume it to be even.
        unclipped: Whether it is of the gradient as it was before clipping.
    """

    found: Restoration
    error: float
    distance: float = math.inf
    evenness: float = 1.0
    unclipped: bool = False

    @property
    def is_even(self) -> bool:
        """Whether the mean prediction that the counts stand for favors no classes."""
        return self.evenness > _FLAT

    @property
    def is_credible(self) -> bool:
        """Whether its assumptions hold, as far as that shows."""
        return self.error < math.inf

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts estimates, the best first; equal where only rounding differs."""
        return max(self.error, _SAME_ERROR), max(self.distance, _SAME_ERROR)


def judged(observation: Observation, found: Restoration) -> Estimate:
    """How far an estimate may be off.

    Standard errors are believed if the mean prediction is even and the counts are as near to
    feasible ones as the errors claim. Without standard errors, the distance from feasible counts is
    the error, if chance does not explain so small a distance.

    Args:
        observation: What the attack saw.
        found: Its estimate, with real-valued counts.
    """
    raw, errors = found.raw, found.standard_errors
    assert raw is not None, "an attack that estimates counts"
    total = observation.num_instances if found.counts is None else int(found.counts.sum())
    even = 1.0 if errors is None else _evenness(observation, found)
    if total is None:
        # Shares have no distance from whole numbers: a sure set goes first, then standard errors.
        order = 2.0 * (Flag.SET_NOT_SURE in found.flags) + float(errors is None)
        return Estimate(found, math.inf, order, even)
    distance = _distance(raw, total)
    # Many absent classes, rightly near zero, would hide errors of the others.
    told = (raw.abs() > _ABSENT) | found.present
    apart = (raw - raw.round()).abs()
    if found.counts is not None:
        apart = torch.maximum(apart, (raw - found.counts).abs())
    of_told = max(distance, float(apart[told].square().mean().sqrt()))
    if errors is None:
        right = of_told < _by_chance(int(told.sum()))
        return Estimate(found, of_told if right else math.inf, of_told)
    claimed = float(errors.square().mean().sqrt())
    follows = even > _FLAT or (even > _UNEVEN and of_told < _WHOLE)
    credible = follows and distance < _CREDIBLE_ERRORS * claimed + _CREDIBLE_MARGIN
    return Estimate(found, max(distance, claimed) if credible else math.inf, distance, even)


def clipping_factor(observation: Observation, estimate: Estimate) -> float | None:
    """The factor above 1 that makes counts whole, if there is one: the gradient was clipped.

    Clipping divides the gradient by one factor s and does not change the mean prediction. Only for
    the right s is ``n = K (p - s db)`` whole and non-negative.
    """
    found = estimate.found
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if not observation.loss.is_plain or bias is None or raw is None or counts is None:
        return None
    if found.standard_errors is None or not estimate.is_even:
        return None
    total = int(counts.sum())
    seen = total * bias.double() / observation.scale
    factors = torch.logspace(0.0, math.log10(_LARGEST_FACTOR), _FACTORS, dtype=torch.float64)
    distances = [_distance(raw - (factor - 1.0) * seen, total) for factor in factors.tolist()]
    least = min(distances)
    # Of factors with equally whole counts, the one nearest to no clipping.
    near = next(i for i, distance in enumerate(distances) if distance <= least + _SAME_ERROR)
    factor = float(factors[near])
    return factor if factor > _LEAST_FACTOR and least < _by_chance(len(raw)) else None


def _distance(raw: Float[Tensor, " classes"], total: int) -> float:
    """Root mean square distance from the nearest feasible counts."""
    return float((raw - project_to_counts(raw, total)).square().mean().sqrt())


def _by_chance(classes: int) -> float:
    """Root mean square distance from whole numbers that chance undercuts once in a thousand times.

    The square of a uniform distance has mean 1/12 and variance 1/180.
    """
    least = 1.0 / 12.0 - 3.0 * math.sqrt(1.0 / (180.0 * classes))
    return max(0.05, min(TRUSTED, math.sqrt(max(0.0, least))))


def _evenness(observation: Observation, found: Restoration) -> float:
    """Perplexity of the mean prediction ``n / K + db``, relative to the number of classes."""
    bias, raw = observation.gradient.bias, found.raw
    if bias is None or raw is None:
        return 1.0
    total = 1 if found.counts is None else int(found.counts.sum())
    prediction = (raw / total + bias.double() / observation.scale).clamp_min(1e-12)
    return perplexity(prediction / prediction.sum()) / observation.classes
