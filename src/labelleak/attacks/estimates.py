"""How far an estimate of the counts may be off, judged without the true counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labelleak.attacks.certainty import (
    agrees,
    are_whole,
    distance_between,
    distance_from_feasible,
    distance_of_told,
    errors_explain,
    nearly_whole,
    probability_right,
)
from labelleak.attacks.multi_label.label_counts import label_counts_are_sure
from labelleak.attacks.own_loss.mapped_counts import mean_probabilities
from labelleak.numerics import perplexity
from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

# Errors below this one are equal: such counts round to the right ones, and the rest of the error
# may be rounding of the gradient, which must not choose between estimates.
_SAME_ERROR = 1e-3
# Least perplexity of an even mean prediction, relative to the number of classes. Below, the network
# is sure of some classes, and its mean prediction no longer follows from a mean embedding.
_FLAT = 0.85
# Down to this perplexity, an estimate is believed if its counts are whole and chance does not
# explain it: untrained networks whose embeddings are far from zero favor some classes, too.
_UNEVEN = 0.5
# Down to this perplexity, counts without errors are weighed against what the mean prediction
# favors. Networks that learn in the local steps favor classes less than trained ones do.
_LEARNING = 0.75
OF_EVEN_PREDICTIONS = ("pooled", "calibrated")
"""Attacks whose counts follow from an even mean prediction, and whose errors are Student's."""

OF_DRAWN_BATCHES = ("virtual-batches",)
"""Attacks that draw batches about even ones: what they say is expected, whatever is predicted."""

# Counts are sure if they are all right with this probability, given their errors.
_SURE = 0.95
# Largest credible distance of each single count from a whole one, in its own errors, and a margin.
_OWN_ERRORS, _OWN_MARGIN = 3.0, 0.05


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
        factor: What the gradient was multiplied by to be at the scale that was told.
    """

    found: Restoration
    error: float
    distance: float = math.inf
    evenness: float = 1.0
    factor: float = 1.0

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


def outweighing(observation: Observation, estimates: Sequence[Estimate]) -> Estimate | None:
    """The estimate without errors whose counts tell more than they may be off, if there is one.

    A network that learns in the local steps favors classes in the end, and how much of that an
    attack reads wrongly nobody knows: up to all of it. Where counts scatter by more than twice as
    much, the batch is uneven, and `pooled` sees it best, since it reads the mean prediction from
    the gradient. Where the favor is less than batches drawn at random scatter, counts are nearer to
    the truth than even ones. Two classes show too little of either.

    Args:
        observation: What the attacks saw.
        estimates: What `pooled` and `calibrated` found, among others.
    """
    classes, total = observation.classes, observation.num_instances
    if total is None or not observation.has_bias or classes == 2:
        return None
    by_chance = (classes - 1) / total
    nearest: tuple[float, Estimate | None] = (by_chance, None)
    for one in estimates:
        raw, errors = one.found.raw, one.found.standard_errors
        if raw is None or errors is not None or one.found.attack not in OF_EVEN_PREDICTIONS:
            continue
        evenness = _evenness(observation, one.found)
        # A perplexity of exp(H) / C stands for about this mean square of relative deviations.
        favored = 2.0 * (1.0 - evenness)
        scatter = float((raw * classes / total - 1.0).square().mean())
        is_uneven = evenness > _LEARNING and scatter > 2.0 * favored + by_chance
        if one.found.attack == "pooled" and is_uneven:
            return one
        nearest = min(nearest, (favored, one), key=lambda pair: pair[0])
    return nearest[1]


def judged(
    observation: Observation, found: Restoration, *, distance: float | None = None
) -> Estimate:
    """How far an estimate may be off.

    Standard errors are believed if the mean prediction is even and the counts are as near to
    feasible ones as the errors claim. Without standard errors, the distance from feasible counts is
    the error, if neither chance nor whole mistakes of a network that is certain explain so small a
    distance.

    Args:
        observation: What the attack saw.
        found: Its estimate, with real-valued counts.
        distance: That from feasible counts, where it is known.
    """
    raw, errors = found.raw, found.standard_errors
    assert raw is not None, "an attack that estimates counts"
    total = observation.num_instances if found.counts is None else int(found.counts.sum())
    even = 1.0 if errors is None else _evenness(observation, found)
    if total is None:
        # Shares have no distance from whole numbers: a sure set goes first, then standard errors.
        order = 2.0 * (Flag.SET_NOT_SURE in found.flags) + float(errors is None)
        return Estimate(found, math.inf, order, even)
    if distance is None:
        distance = distance_from_feasible(raw, total)
    if errors is None:
        of_told = max(distance, distance_of_told(found))
        whole = _are_found_whole(observation, found, total)
        return Estimate(found, of_told if whole else math.inf, of_told)
    follows = even > _FLAT or (even > _UNEVEN and _are_found_whole(observation, found, total))
    credible = follows and agrees(distance, errors)
    claimed = float(errors.square().mean().sqrt())
    return Estimate(found, max(distance, claimed) if credible else math.inf, distance, even)


def counts_are_sure(observation: Observation, found: Restoration, *, is_treated: bool) -> bool:
    """Whether all counts of a restoration are right with 95 % probability, as far as that shows.

    Proven counts are. Otherwise the estimate must be credible, and its errors leave no other counts
    probable.

    Args:
        observation: What the attack saw.
        found: With counts.
        is_treated: Whether the gradient shows a defense. An attack's own errors then do not hold,
            and only whole counts that chance does not explain tell of them.
    """
    if found.certified or found.raw is None or found.counts is None:
        return found.certified
    if observation.head.per_pixel:
        # Of as many pixels, nobody tells every single one.
        return False
    if observation.loss.is_multi_label:
        return label_counts_are_sure(found, observation.loss) and not is_treated
    if not observation.has_bias and observation.classes == 2:
        # Some length of the mean embedding makes two counts whole, whatever they are.
        return False
    raw, counts, errors = found.raw, found.counts, found.standard_errors
    distance = distance_between(raw, counts)
    # A single row shows nothing of its scale: what was clipped has counts that are wrong, too. And
    # whole counts alone show that auxiliary data, batch size and loss are the client's.
    if errors is None or is_treated or observation.is_one_logit or found.attack in OF_DRAWN_BATCHES:
        if not are_whole(found):
            return False
        errors = torch.full_like(raw, max(distance, distance_of_told(found)))
    # Most counts fail the first question, and the others take longer.
    if probability_right(raw, errors, counts) <= _SURE:
        return False
    near = _all_near if observation.loss.kind == "custom" else errors_explain
    if not near(raw, errors, counts):
        return False
    if not torch.equal(counts, project_to_counts(raw, int(counts.sum()))):
        return False
    return judged(observation, found, distance=distance).is_credible


def _all_near(raw: Tensor, errors: Tensor, counts: Tensor) -> bool:
    """Whether every count is as near to a whole one as its own error claims.

    Errors of a loss of the user's may be far apart, and the mean of all would hide one.
    """
    return bool(((raw - counts).abs() <= _OWN_ERRORS * errors + _OWN_MARGIN).all())


def doubted(observation: Observation, found: Restoration, *, is_treated: bool) -> Restoration:
    """The restoration, flagged where its counts are not sure.

    Where nobody told the batch size, counts are told up to a common factor: the set has a flag.

    Args:
        observation: What the attack saw.
        found: What it restored.
        is_treated: Whether the gradient shows a defense.
    """
    if observation.num_instances is None or found.counts is None:
        return found
    if counts_are_sure(observation, found, is_treated=is_treated):
        return found
    return replace(found, flags=(*found.flags, Flag.COUNTS_NOT_SURE))


def _are_found_whole(observation: Observation, found: Restoration, total: int) -> bool:
    """Whether an attack found whole counts where neither chance nor mistakes explain them."""
    return are_whole(found) and not _mistakes_are_whole(observation, total)


def _mistakes_are_whole(observation: Observation, total: int) -> bool:
    """Whether counts are whole for any attack, right or wrong, as the mistakes ``K * db`` are.

    A network that is certain of every sample makes a whole number of mistakes, and says nothing of
    the samples that it is right about: attacks add these to any class.
    """
    bias = observation.gradient.bias
    return bias is not None and nearly_whole(total * bias.double() / observation.scale)


def _evenness(observation: Observation, found: Restoration) -> float:
    """Perplexity of the mean prediction ``n / K + db``, relative to the number of classes."""
    if observation.loss.kind == "custom":
        return perplexity(mean_probabilities(observation)) / observation.classes
    bias, raw = observation.gradient.bias, found.raw
    if bias is None or raw is None:
        return 1.0
    total = 1 if found.counts is None else int(found.counts.sum())
    if observation.loss.ignores_weights:
        even = torch.full_like(raw, 1.0 / len(raw))[:, None]
        raw = raw * observation.loss.sample_weights(even)[:, 0]
    prediction = (raw / total + bias.double() / observation.scale).clamp_min(1e-12)
    return perplexity(prediction / prediction.sum()) / observation.classes
