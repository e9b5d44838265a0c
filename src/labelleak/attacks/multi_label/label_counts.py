"""From residuals of labels that are there and that are not to counts, and whether they are sure."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.certainty import by_chance
from labelleak.attacks.multi_label.label_logits import divisor_of_one
from labelleak.loss import Loss
from labelleak.numerics import implied_rounding, root_mean_square
from labelleak.observation import Observation
from labelleak.projection import project_to_box
from labelleak.restoration import Flag, Restoration

# Counts are sure if they are all right with this probability, given their errors.
_SURE = 0.95
# Largest credible distance from whole counts within 0 and K: in standard errors, plus a margin.
_CREDIBLE_ERRORS, _CREDIBLE_MARGIN = 2.0, 0.05
# A count so far from a whole one, in its own errors, that one of all is by this chance contradicts
# the loss that was told.
_BY_ERROR = 1e-3
# Floor of an error, for rounding errors of the gradient.
_LEAST_ERROR = 1e-3
# Without a batch size: a label is there if its share is above so many errors, and the set is not
# sure if a share is between so many.
_CLEAR, _UNSURE = 3.0, (2.0, 8.0)
# No smaller share is looked for.
_SMALLEST = 1.0 / 4096


def raw_label_counts(
    observation: Observation,
    zero: Float[Tensor, "labels *estimates"],
    one: Float[Tensor, "labels *estimates"],
    bias: Float[Tensor, "labels *_"],
    total: float,
) -> Float[Tensor, "labels *estimates"]:
    """Real-valued counts by ``D db = n r1 + (K - n) r0``, for every label by itself.

    Args:
        observation: Of the loss.
        zero: Mean residual r0 of a label that is not there.
        one: Mean residual r1 of one that is there, below r0.
        bias: Gradient of the head's bias.
        total: Number of samples, K.
    """
    return total * (zero - divisor_of_one(observation) * bias) / (zero - one)


def rounding_of_counts(
    observation: Observation, apart: Float[Tensor, " labels"], total: float
) -> Float[Tensor, " labels"]:
    """Error of the counts that rounding of the bias gradient makes.

    Args:
        observation: What the server sees.
        apart: Residual of a label that is not there less that of one that is.
        total: Number of samples.
    """
    gradient = observation.gradient
    noise = gradient.rounding
    if gradient.bias is not None:
        noise = max(noise, implied_rounding(gradient.bias))
    return total * divisor_of_one(observation) * noise / apart


def conclude_labels(
    observation: Observation,
    raw: Float[Tensor, " labels"],
    errors: Float[Tensor, " labels"] | None,
    flags: tuple[Flag, ...] = (),
) -> Restoration:
    """Counts, set and shares that real-valued counts of labels stand for.

    Args:
        observation: What the server sees.
        raw: Real-valued counts, or shares where the number of samples is not known.
        errors: Their standard errors; None where they are not known.
        flags: What the attack has to say.
    """
    total = observation.num_instances
    shares = (raw / (total or 1)).clamp(0.0, 1.0)
    if total is None:
        present, sure = _told_apart(shares, raw, errors)
        flags = flags if sure else (*flags, Flag.SET_NOT_SURE)
        return Restoration(
            present=present,
            raw=raw,
            standard_errors=errors,
            proportions=shares,
            flags=flags,
            multi_label=True,
        )
    counts = project_to_box(raw, total)
    return Restoration(
        present=counts > 0,
        counts=counts,
        rounded=counts,
        raw=raw,
        standard_errors=errors,
        proportions=shares,
        flags=flags,
        multi_label=True,
        samples=total,
    )


def _told_apart(
    shares: Float[Tensor, " labels"],
    raw: Float[Tensor, " labels"],
    errors: Float[Tensor, " labels"] | None,
) -> tuple[Tensor, bool]:
    if errors is None:
        return shares > _SMALLEST, False
    least = max(root_mean_square(errors), -float(raw.min()), _SMALLEST / _UNSURE[1])
    ratios = raw / errors.clamp_min(least)
    unsure = (ratios > _UNSURE[0]) & (ratios < _UNSURE[1])
    return ratios > _CLEAR, not bool(unsure.any())


def label_counts_are_sure(found: Restoration, loss: Loss | None = None) -> bool:
    """Whether all counts are right with 95 % probability, as far as that shows.

    Errors have to be known, and counts as near to whole ones between 0 and K as they claim, and
    nearer than chance explains: noise, which nothing else shows here, another loss and most other
    batch sizes leave fractions. A multiple of the batch size never does: a batch that holds every
    sample as often has the same gradient.

    Where nobody told weights of labels, counts that have a common factor are not sure, either: at
    predictions of one half, labels that are there and weigh three times as much pull as twice as
    many would.

    Args:
        found: What an attack restored.
        loss: The loss that was told; None where its weights are known.
    """
    if found.certified or found.counts is None:
        return found.certified
    if loss is not None and _may_be_weighted(loss, found.counts):
        return False
    raw, errors, total = found.raw, found.standard_errors, found.samples
    if raw is None or errors is None or total is None:
        return False
    apart = root_mean_square(raw - found.counts)
    claimed = root_mean_square(errors)
    if apart > min(_CREDIBLE_ERRORS * claimed + _CREDIBLE_MARGIN, by_chance(len(raw))):
        return False
    farthest = float(((raw - found.counts).abs() / errors.clamp_min(_LEAST_ERROR)).max())
    if math.erfc(farthest / math.sqrt(2.0)) * len(raw) < _BY_ERROR:
        return False
    return _probability_right(raw, errors, found.counts, total) > _SURE


def _may_be_weighted(loss: Loss, counts: Tensor) -> bool:
    """Whether weights that were not told would explain as whole counts."""
    told = loss.function is not None or loss.alpha is not None
    return not told and loss.positive_weights is None and math.gcd(*counts.tolist()) > 1


def _probability_right(
    raw: Float[Tensor, " labels"],
    errors: Float[Tensor, " labels"],
    counts: Tensor,
    total: int,
) -> float:
    """Probability of these counts against their neighbors, for normal errors."""
    variances = errors.clamp_min(_LEAST_ERROR).square()
    own = (raw - counts).square()
    odds = torch.zeros_like(raw)
    for step in (1, -1):
        other = (raw - counts - step).square()
        possible = (counts + step >= 0) & (counts + step <= total)
        odds += torch.exp((own - other) / (2.0 * variances)).where(possible, 0.0)
    return math.exp(-float(odds.log1p().sum()))
