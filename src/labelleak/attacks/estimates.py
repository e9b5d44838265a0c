"""How far an estimate of the counts may be off, judged by what shows without the truth."""

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
"""Error of a count, root mean square, above which rounding is little better than chance."""

# Perplexity of the mean prediction, relative to the number of classes. Below, predictions have
# become sure of some classes, and no longer follow from a mean embedding.
_FLAT = 0.85
# Above this one, counts that are as near to whole numbers as that show that it does no harm:
# untrained networks whose embeddings are far from zero favour some classes, too.
_UNEVEN, _WHOLE = 0.5, 0.1
# A count nearer to zero than this tells nothing of its class but that it is absent.
_ABSENT = 0.1
# How much smaller a clipped gradient is at least and at most, and how many factors are tried.
_LEAST_FACTOR = 1.1
_LARGEST_FACTOR = 30.0
_FACTORS = 500


@dataclass(frozen=True)
class Estimate:
    """Counts, and by how much they are off, as far as that shows without the truth.

    Attributes:
        found: The restoration.
        error: Root mean square of the error of a count; infinite where assumptions do not hold.
        distance: The same of the distance from counts that could be; at most that is seen of it.
        unclipped: Whether it is of a gradient as it was before it was clipped.
    """

    found: Restoration
    error: float
    distance: float = math.inf
    unclipped: bool = False


def judged(observation: Observation, found: Restoration) -> Estimate:
    """How far an estimate may be off.

    Standard errors are believed where the mean prediction is even and the counts are as near to
    counts that could be as they claim. Without standard errors the distance from such counts is the
    error, if it is so small that chance does not explain it.
    """
    raw, errors = found.raw, found.standard_errors
    assert raw is not None, "an attack that estimates counts"
    total = observation.num_instances if found.counts is None else int(found.counts.sum())
    if total is None:
        # Shares have no distance from whole numbers: a sure set first, then the sharper attack.
        unsure = Flag.SET_NOT_SURE in found.flags
        return Estimate(found, math.inf, 2.0 * unsure + float(errors is None))
    even = 1.0 if errors is None else evenness(observation, found)
    distance = _distance(raw, total)
    # Absent classes, rightly near zero, would hide what is wrong with the others.
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
    credible = follows and distance < 2.0 * claimed + 0.05
    return Estimate(found, max(distance, claimed) if credible else math.inf, distance)


def _distance(raw: Float[Tensor, " classes"], total: int) -> float:
    """From the nearest counts that could be, root mean square."""
    return float((raw - project_to_counts(raw, total)).square().mean().sqrt())


def clipping(observation: Observation, found: Restoration) -> float | None:
    """By which factor the gradient is too small, if there is one above 1 that makes counts whole.

    A gradient that was clipped is too small by one factor. The mean prediction does not change with
    it, and only ``n = K (p - s db)`` of the right s is whole and not negative.
    """
    plain = observation.loss.is_plain
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if not plain or bias is None or raw is None or counts is None:
        return None
    if found.standard_errors is None or not is_even(observation, found):
        return None
    total = int(counts.sum())
    scale = observation.scale
    seen = total * bias.double() / scale
    factors = torch.logspace(0.0, math.log10(_LARGEST_FACTOR), _FACTORS, dtype=torch.float64)
    distances = [_distance(raw - (factor - 1.0) * seen, total) for factor in factors.tolist()]
    least = min(distances)
    factor = float(factors[distances.index(least)])
    return factor if factor > _LEAST_FACTOR and least < _by_chance(len(raw)) else None


def _by_chance(classes: int) -> float:
    """Distance from whole numbers, root mean square, that chance reaches once in a thousand times.

    Fractions without meaning have a mean square of 1/12 and a variance of it of 1/180.
    """
    least = 1.0 / 12.0 - 3.0 * math.sqrt(1.0 / (180.0 * classes))
    return max(0.05, min(TRUSTED, math.sqrt(max(0.0, least))))


def is_even(observation: Observation, found: Restoration) -> bool:
    """Whether the mean prediction that the counts stand for favours no classes."""
    return evenness(observation, found) > _FLAT


def evenness(observation: Observation, found: Restoration) -> float:
    """Perplexity of the mean prediction ``n / K + db``, relative to the number of classes."""
    bias, raw = observation.gradient.bias, found.raw
    if bias is None or raw is None:
        return 1.0
    scale = observation.scale
    total = 1 if found.counts is None else int(found.counts.sum())
    prediction = (raw / total + bias.double() / scale).clamp_min(1e-12)
    return perplexity(prediction / prediction.sum()) / observation.classes
