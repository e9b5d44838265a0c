"""The standard evaluation without knobs: run what is possible, take the most credible result."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.certainty import TRUSTED, agrees, contradicts
from labelleak.attacks.cost import Budget
from labelleak.attacks.diagnosis import Diagnosis
from labelleak.attacks.estimates import (
    OF_DRAWN_BATCHES,
    OF_EVEN_PREDICTIONS,
    Estimate,
    counts_are_sure,
    doubted,
    judged,
    outweighing,
)
from labelleak.attacks.mean_prediction.scatter import student_factor
from labelleak.attacks.multi_label.label_auto import automatic_labels
from labelleak.attacks.posterior import expected_counts, is_noise
from labelleak.attacks.registry import attempt_attack, run_attack
from labelleak.attacks.scale import fitting_scale, scaled
from labelleak.errors import InvalidObservation
from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

TIME_LIMIT = 10.0
"""Seconds that `auto` takes at most, about, unless told otherwise."""

SIMULATING = 60.0
"""Seconds from which on `auto` trains virtual clients where there were several local steps."""

# Share of the remaining time for the search for single samples, its least share of the whole time,
# and its seconds where estimates are clear and only a certificate is missing.
_SEARCHING = 0.8
_LEAST_SEARCH = 0.2
_CONFIRMING = 2.0
# Attacks on auxiliary samples, the best first: of one step, of several steps, of any classes.
_OF_AUXILIARY = (*OF_DRAWN_BATCHES, "likelihood", "rlu")
# Root mean square error of the counts below which no further estimate is needed.
_PRECISE = 0.08


def automatic(
    observation: Observation,
    diagnosis: Diagnosis,
    time_limit: float = TIME_LIMIT,
    now: Callable[[], float] = time.monotonic,
    *,
    simulates: bool = True,
) -> Restoration:
    """Run what the observation allows and take what can be trusted most.

    After several local steps `virtual` has the word, or `synthetic` without auxiliary data, where
    it has what it needs and a minute's time, and the update is like those that it simulated.
    Counts that are not sure are drawn toward even ones as far as their errors ask for, those of
    virtual clients where they scatter no more than their errors and chance, and no class is seen to
    be absent.

    A certificate by `exact` ends it. Otherwise estimates of the counts are compared by what shows
    without the true counts: the standard errors that they claim, the distance of their real-valued
    counts from feasible ones (whole, non-negative, of the right sum), and whether the mean
    prediction is as even as they assume.

    Args:
        observation: What the server sees.
        diagnosis: What its gradient shows by itself.
        time_limit: Seconds, positive.
        now: Reads the clock, in seconds.
        simulates: Whether the observation's model is one that a client could train by its recipe.

    Returns:
        What the attack that spoke restored.
    """
    if observation.loss.is_multi_label:
        return automatic_labels(observation, is_treated=diagnosis.is_treated, time_limit=time_limit)
    if observation.head.per_pixel:
        # No pixel is found by itself, and shares are far from even: the rest assumes them to be.
        found = run_attack(observation, "pooled")
        return doubted(observation, found, is_treated=diagnosis.is_treated)
    if simulates and observation.local_steps > 1 and time_limit >= SIMULATING:
        simulated = _attempt_simulation(observation, _SEARCHING * time_limit)
        if simulated is not None and Flag.OUTSIDE_SIMULATIONS not in simulated.flags:
            found = doubted(observation, simulated, is_treated=diagnosis.is_treated)
            unsure = Flag.COUNTS_NOT_SURE in found.flags
            return _expected(found) if unsure and _is_noise(observation, found) else found
    end, budget = now() + time_limit, Budget(observation, time_limit)
    estimates = _estimates(observation, budget)
    proven = next((one.found for one in estimates if one.found.certified), None)
    if proven is not None:
        return proven
    best = min(estimates, key=lambda estimate: estimate.rank, default=None)
    measured = any(e.found.standard_errors is not None and e.is_credible for e in estimates)
    clear = measured and best is not None and best.error < TRUSTED
    seconds = max(_SEARCHING * (end - now()), _LEAST_SEARCH * time_limit)
    # A longer limit is for slower machines, too.
    seconds = min(seconds, max(_CONFIRMING, _LEAST_SEARCH * time_limit)) if clear else seconds
    samples = None
    # Nothing that was added to a gradient can be rebuilt.
    if budget.allows_search and not diagnosis.is_treated and not _is_crowded(observation):
        samples = attempt_attack(observation, "exact", time_limit=seconds)
    if samples is not None and _suffice(observation, samples, measured=measured):
        return samples
    left = max(end - now(), _LEAST_SEARCH * time_limit)
    most_precise, best = best, _fallback(observation, budget, estimates, best, left)
    if best is None:
        counted = samples is not None and samples.counts is not None
        found = samples if samples is not None and counted else _set(observation, budget, left)
        return found if budget.allows_pooling else _hurried(found)
    found = best.found
    if samples is not None:
        trusted = clear and best is most_precise
        found = _with_samples(observation, found, samples, trusted=trusted)
    # Judged as the attack has them: at another scale, another mean prediction belongs to them.
    at_scale = observation if best.factor == 1.0 else scaled(observation, best.factor)
    sure = counts_are_sure(at_scale, found, is_treated=diagnosis.is_treated)
    found = found if sure or found.attack in OF_DRAWN_BATCHES else _expected(found)
    flags = found.flags if budget.allows_pooling else _hurried(found).flags
    if _contradicted(best, estimates):
        flags = (*flags, Flag.ATTACKS_DISAGREE)
    if observation.num_instances is not None and found.counts is not None and not sure:
        flags = (*flags, Flag.COUNTS_NOT_SURE)
    return replace(found, flags=flags)


def _attempt_simulation(observation: Observation, seconds: float) -> Restoration | None:
    """What virtual clients say; None where the model cannot be trained, which others need not."""
    attack = "synthetic" if observation.auxiliary is None else "virtual"
    try:
        return attempt_attack(observation, attack, time_limit=seconds)
    except InvalidObservation:
        return None


def _is_noise(observation: Observation, found: Restoration) -> bool:
    """Whether virtual clients tell too little, and even counts are as good a guess.

    A class that a published attack on auxiliary samples does not find at all speaks against that.
    """
    assert found.raw is not None, "virtual clients have estimates"
    assert found.standard_errors is not None, "virtual clients have errors"
    assert found.counts is not None, "virtual clients have counts"
    other = attempt_attack(observation, "llbg-aux") if observation.training.is_sgd else None
    counts = None if other is None else other.counts
    if counts is not None and bool((counts == 0).any()):
        return False
    total, confirmed = int(found.counts.sum()), counts is not None
    return is_noise(found.raw, found.standard_errors, total, confirmed=confirmed)


def _is_crowded(observation: Observation) -> bool:
    """Whether there are more samples than `exact` can tell apart.

    A batch larger than the head's rank can only be separated by the previous layer.
    """
    size = observation.batch_size or 0
    return observation.gradients is None and size >= min(
        observation.classes, observation.head.features
    )


def _suffice(observation: Observation, samples: Restoration, *, measured: bool) -> bool:
    """Whether the samples that `exact` found need no estimate beside them.

    They are certified, or would be if the batch size were known; or they are at least half of the
    batch, and no estimate has standard errors that can be believed (`measured`).
    """
    if samples.certified or samples.counts is None:
        return samples.certified
    if observation.batch_size is None and not samples.flags:
        return True
    found = 0 if samples.embedding_labels is None else len(samples.embedding_labels)
    return not measured and 2 * found >= int(samples.counts.sum())


def _estimates(observation: Observation, budget: Budget) -> list[Estimate]:
    """Judged estimates of the counts, from every attack that can make one."""
    found = [_judged_attempt(observation, "pooled") if budget.allows_pooling else None]
    if budget.allows_equations:
        found.append(_judged_attempt(observation, "ilrg"))
        if _worthwhile(observation, found[0]) and budget.allows_calibrated:
            found.append(_judged_attempt(observation, "calibrated"))
        if observation.auxiliary is not None:
            # Of an update by Adam, `likelihood` has less to tell.
            names = _OF_AUXILIARY if observation.training.is_sgd else ("rlu",)
            attempts = (_judged_attempt(observation, attack) for attack in names)
            found.append(next((one for one in attempts if one is not None), None))
    return [_rescaled(observation, one) for one in found if one is not None]


def _hurried(found: Restoration) -> Restoration:
    """What was found without the estimate that there was no time for."""
    return replace(found, flags=(*found.flags, Flag.TIME_LIMIT))


def _judged_attempt(observation: Observation, name: str) -> Estimate | None:
    found = attempt_attack(observation, name)
    return None if found is None else judged(observation, found)


def _worthwhile(observation: Observation, pooled: Estimate | None) -> bool:
    """Whether inputs sent through the model may tell more than the gradient's rows alone.

    Dummies tell nothing about a trained network, and rows suffice where their estimate is precise.
    """
    if pooled is None or observation.auxiliary is not None:
        return True
    return pooled.is_even and pooled.error >= _PRECISE


def _rescaled(observation: Observation, plain: Estimate) -> Estimate:
    """The estimate, or that of the gradient at the scale that was told, if it is at another.

    The attack confirms the factor: only for the right one are its counts as whole as its standard
    errors claim.
    """
    if plain.error < TRUSTED or plain.found.standard_errors is None or not plain.is_even:
        return plain
    scale = fitting_scale(observation, plain.found)
    if scale is None or not scale.is_confirmed:
        return plain
    whole = _judged_attempt(scaled(observation, scale.factor), plain.found.attack)
    if whole is None or whole.error >= TRUSTED:
        return plain
    added = (Flag.SCALE_DOES_NOT_FIT, *([Flag.DEFENSE_SUSPECTED] if scale.factor > 1.0 else []))
    # Whole counts at a scale that nobody told are no proof.
    found = replace(whole.found, certified=False, flags=(*whole.found.flags, *added))
    return replace(whole, found=found, factor=scale.factor)


def _fallback(
    observation: Observation,
    budget: Budget,
    estimates: list[Estimate],
    best: Estimate | None,
    seconds: float,
) -> Estimate | None:
    """The best estimate if it is credible, else that of an attack that assumes less."""
    credible = best is not None and best.is_credible
    by_mistakes = (one for one in estimates if one.found.attack in _OF_AUXILIARY)
    mistakes = next(by_mistakes, None)
    if mistakes is not None and (not credible or observation.local_steps > 1):
        return mistakes
    if not observation.has_bias and not (best is not None and best.error < TRUSTED):
        # Without a bias, estimates are so weak that a proven set says more.
        proven = _set(observation, budget, seconds)
        return Estimate(proven, math.inf) if proven.attack == "rlg" else best
    if credible:
        return best
    told = outweighing(observation, estimates)
    if told is not None:
        return told
    # With very many classes their mean prediction is even, and computing it takes the time twice.
    found = attempt_attack(observation, "damped") if budget.has_room else None
    found = found or attempt_attack(observation, "llbg")
    return best if found is None else Estimate(found, math.inf)


def _set(observation: Observation, budget: Budget, seconds: float) -> Restoration:
    """The set of classes: proven by the gradient's rank, or else suggested, by that or by signs."""
    if observation.loss.kind == "custom":
        return run_attack(observation, "pooled")  # which says what is missing
    found = None
    if budget.has_room:
        found = attempt_attack(observation, "rlg", strict=True, time_limit=seconds)
    if found is not None and observation.loss.is_plain and observation.present_classes is None:
        return found
    signs = "gradinversion" if observation.gradient.has_weight else "ebi"
    found = found or run_attack(observation, signs)
    return replace(found, flags=(*found.flags, Flag.SET_NOT_SURE))


def _with_samples(
    observation: Observation, estimate: Restoration, samples: Restoration, *, trusted: bool
) -> Restoration:
    """An estimate with the samples that `exact` found for certain as lower bounds of its counts."""
    certain, total = samples.certain, observation.num_instances
    assert certain is not None, "exact says what it found"
    least = int(certain.sum())
    # Where nobody told the batch size, the estimate has a total of its own.
    told = total if total is not None or estimate.counts is None else int(estimate.counts.sum())
    if told is not None and least > told:
        return estimate
    if estimate.attack == "rlg" and bool((certain[~estimate.present] > 0).any()):
        # Two that are sure of it contradict each other, so that neither is to be believed.
        return replace(estimate, flags=(*estimate.flags, Flag.ATTACKS_DISAGREE))
    found = replace(
        estimate,
        certain=certain,
        embeddings=samples.embeddings,
        embedding_labels=samples.embedding_labels,
        invisible=samples.invisible,
        present=estimate.present | (certain > 0),
    )
    if not trusted and found.counts is not None and found.attack != "rlg":
        found = replace(found, flags=(*found.flags, *samples.flags))
    values = estimate.raw if estimate.raw is not None else estimate.counts
    if values is None or estimate.counts is None or total is None or not least:
        return found
    return _counted(found, values.double(), estimate.rounded, certain, total)


def _expected(found: Restoration) -> Restoration:
    """An estimate with its counts as they are expected, where their errors are known."""
    raw, errors, counts = found.raw, found.standard_errors, found.counts
    if raw is None or errors is None or counts is None:
        return found
    total = int(counts.sum())
    # `pooled` and `calibrated` widen theirs by as much as their intervals need.
    widened = found.attack in OF_EVEN_PREDICTIONS
    own = errors / student_factor(len(raw)) if widened else errors
    expected = expected_counts(raw, own, total)
    least = torch.zeros_like(counts) if found.certain is None else found.certain
    return _counted(found, expected, expected.clamp(0.0, total).round().long(), least, total)


def _counted(
    found: Restoration,
    values: Float[Tensor, " classes"],
    rounded: Int[Tensor, " classes"] | None,
    least: Int[Tensor, " classes"],
    total: int,
) -> Restoration:
    """The restoration with the counts nearest to these values that are no lower than the least."""
    counts = least + project_to_counts(values - least, total - int(least.sum()))
    return replace(
        found,
        counts=counts,
        present=counts > 0,
        proportions=counts.double() / total,
        rounded=None if rounded is None else torch.maximum(rounded, least),
    )


def _contradicted(best: Estimate, estimates: list[Estimate]) -> bool:
    """Whether another estimate differs from the best by more than the errors of both.

    A credible estimate is contradicted by credible ones only. Otherwise any difference counts.
    """
    counts = best.found.counts
    if counts is None or best.found.attack == "rlg":
        return False
    for other in estimates:
        raw, errors = other.found.raw, other.found.standard_errors
        if other.found.attack == best.found.attack or raw is None or other.found.counts is None:
            continue
        if best.factor != 1.0 and other.factor == 1.0:
            # The other estimate reads a gradient that is known to be at another scale.
            continue
        if not best.is_credible:
            if not torch.equal(other.found.counts, counts):
                return True
            continue
        # Drawn batches take the mean prediction as it is, even or not.
        claimed = errors is not None and agrees(other.distance, errors)
        if other.is_credible or (claimed and other.found.attack in OF_DRAWN_BATCHES):
            own = errors if errors is not None else torch.full_like(raw, other.distance)
            if best.found.standard_errors is not None:
                own = torch.hypot(own, best.found.standard_errors)
            if contradicts(raw, own, counts):
                return True
    return False
