"""The standard evaluation without knobs: what the observation allows, judged without the truth."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from labelleak.attacks.diagnosis import defence_suspected
from labelleak.attacks.estimates import TRUSTED, Estimate, clipping, is_even, judged
from labelleak.attacks.mbi import moment
from labelleak.attacks.registry import run_attack
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

TIME_LIMIT = 10.0
"""Seconds that `auto` takes at most, about, where nobody says otherwise."""

# The search for a certificate gets this share of what is left of it, and that of all of it at
# least; where the counts are clear without a certificate, so many seconds.
_SEARCHING = 0.8
_LEAST_SEARCH = 0.2
_CONFIRMING = 2.0
# Decompositions for a certificate, and matrices classes x classes, are held back above these sizes:
# seconds, and 2 GB each.
_MOST_DECOMPOSED = 4e9
_DENSE_CLASSES = 16_384
# Multiplications of one forward pass of the dummies in a second of one core, to be on the safe
# side, and how many dummies `calibrated` sends through the model.
_WORK_PER_SECOND = 1e10
_DUMMIES = 6_000
# An error of the counts (root mean square) under which another estimate is not needed.
_PRECISE = 0.08
# So many standard errors between two estimates of a count are no chance.
_APART = 4.0
# A bias gradient that spreads so much more than that of any even batch is no measure of an impact.
_MOST_MOMENT = 1.2


def automatic(
    observation: Observation,
    time_limit: float = TIME_LIMIT,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """Run what the observation allows and take what can be trusted most.

    A certificate by `exact` ends it. Otherwise the estimators of counts are compared by what can be
    measured without the truth: the standard errors that they claim, how far their real-valued
    counts are from counts that could be (whole, not negative, of the right sum), and whether the
    mean prediction is as even as their assumptions have it.

    Args:
        observation: What the server sees.
        time_limit: Seconds, positive.
        now: Reads the clock, in seconds.

    Returns:
        What the attack that spoke restored.
    """
    end = now() + time_limit
    estimates = _estimates(observation, time_limit)
    best = min(estimates, key=lambda one: (one.error, one.distance), default=None)
    clear = best is not None and best.error < TRUSTED and _sure(estimates)
    share = max(_SEARCHING * (end - now()), _LEAST_SEARCH * time_limit)
    partial = _search(observation, min(share, _CONFIRMING) if clear else share)
    if partial is not None and (partial.certified or _all_but_proven(observation, partial)):
        return partial
    if partial is not None and _mostly_found(partial) and not _sure(estimates):
        return partial
    best = _coarse(observation, estimates, best)
    if best is None:
        known = partial is not None and partial.counts is not None
        return partial if partial is not None and known else _set(observation)
    found = best.found if partial is None else _with_found(observation, best.found, partial, clear)
    if _disagree(best, estimates):
        found = replace(found, flags=(*found.flags, Flag.ATTACKS_DISAGREE))
    return found


def _search(observation: Observation, seconds: float) -> Restoration | None:
    """What `exact` finds, where the gradient is one that it can take apart."""
    classes, features = observation.classes, observation.head.features
    few, many = sorted((classes, features + 1))
    size = observation.batch_size or 0
    # More samples than the head has room for, it tells apart by the layer before, if at all.
    crowded = size >= min(classes, features) and observation.gradients is None
    if few**2 * many > _MOST_DECOMPOSED or crowded:
        return None
    if defence_suspected(observation):
        # Nothing that was added to a gradient can be rebuilt.
        return None
    return _attempt(observation, "exact", time_limit=seconds)


def _attempt(observation: Observation, name: str, **hyper_parameters: object) -> Restoration | None:
    try:
        return run_attack(observation, name, **hyper_parameters)
    except MissingKnowledge:
        return None


def _estimates(observation: Observation, seconds: float) -> list[Estimate]:
    """Estimates of the counts from whichever attack can make one."""
    found = [_attempt(observation, "pooled")]
    if dense(observation, seconds):
        found.append(_attempt(observation, "ilrg"))
        if _worthwhile(observation, found[0]) and affordable(observation, seconds):
            found.append(_attempt(observation, "calibrated"))
        if observation.auxiliary is not None:
            found.append(_attempt(observation, "likelihood") or _attempt(observation, "rlu"))
    return [_unclipped(observation, one) for one in found if one is not None]


def dense(observation: Observation, seconds: float) -> bool:
    """Whether there is room and time for equations between all classes."""
    classes = observation.classes
    return classes <= _DENSE_CLASSES and classes**3 <= _WORK_PER_SECOND * seconds


def _unclipped(observation: Observation, found: Restoration) -> Estimate:
    """The estimate, or the one of a gradient as it was before it was clipped, if it was.

    The attack itself confirms the factor: only of the right one does it find counts that are as
    whole as its standard errors say.
    """
    plain = judged(observation, found)
    factor = None if plain.error < TRUSTED else clipping(observation, found)
    if factor is None:
        return plain
    larger = _scaled(observation, factor)
    again = _attempt(larger, found.attack)
    whole = plain if again is None else judged(larger, again)
    if whole.error >= TRUSTED:
        return plain
    flags = (*whole.found.flags, Flag.DEFENCE_SUSPECTED)
    return replace(whole, found=replace(whole.found, flags=flags), unclipped=True)


def _scaled(observation: Observation, factor: float) -> Observation:
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


def _worthwhile(observation: Observation, pooled: Restoration | None) -> bool:
    """Whether inputs sent through the model may tell more than the gradient's rows do alone.

    Dummies say nothing of a network that has learned, and rows say enough where they agree.
    """
    if pooled is None or observation.auxiliary is not None:
        return True
    return is_even(observation, pooled) and judged(observation, pooled).error >= _PRECISE


def affordable(observation: Observation, seconds: float) -> bool:
    """Whether `calibrated` sends its inputs through the model in about that time."""
    model, auxiliary = observation.model, observation.auxiliary
    if model is None:
        return False
    inputs = _DUMMIES if auxiliary is None else len(auxiliary.inputs)
    return inputs * _work(model, observation.input_shape) <= _WORK_PER_SECOND * seconds


def _work(model: nn.Module, shape: tuple[int, ...] | None) -> float:
    """Multiplications of a forward pass of one input; counted, so that no clock decides."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if shape is None:
        plain = all(isinstance(layer, nn.Linear) for layer in layers)
        return float(sum(p.numel() for p in model.parameters())) if plain else math.inf
    total = 0.0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += output.numel() * weight.numel() / weight.shape[0]

    handles = [layer.register_forward_hook(count) for layer in layers]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(next(model.parameters()).new_zeros(1, *shape))
    except RuntimeError:
        return math.inf
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return total


def _all_but_proven(observation: Observation, partial: Restoration) -> bool:
    """Whether a certificate lacks nothing but the batch size, which nobody told."""
    found = partial.counts is not None and not partial.flags
    return observation.batch_size is None and found


def _mostly_found(partial: Restoration) -> bool:
    """Whether at least half of the samples were found one by one, so that few are estimated."""
    if partial.counts is None or partial.embedding_labels is None:
        return False
    return 2 * len(partial.embedding_labels) >= int(partial.counts.sum())


def _sure(estimates: list[Estimate]) -> bool:
    """Whether there are standard errors that can be believed."""
    return any(one.found.standard_errors is not None and one.error < math.inf for one in estimates)


def _coarse(
    observation: Observation, estimates: list[Estimate], best: Estimate | None
) -> Estimate | None:
    """What remains where no estimate is credible: attacks that ask less of the network."""
    credible = best is not None and best.error < math.inf
    by_mistakes = (one for one in estimates if one.found.attack in ("likelihood", "rlu"))
    mistakes = next(by_mistakes, None)
    if mistakes is not None and (not credible or observation.local_steps > 1):
        return mistakes
    if not observation.has_bias and not (best is not None and best.error < TRUSTED):
        # Without a bias estimates are so weak that a set which is proven says more.
        proven = _set(observation)
        return Estimate(proven, math.inf) if proven.attack == "rlg" else best
    if credible:
        return best
    found = _attempt(observation, "mbi")
    if found is None or moment(observation) > _MOST_MOMENT:
        return best
    return Estimate(found, math.inf)


def _set(observation: Observation) -> Restoration:
    """Which classes there are: as the gradient's rank proves it, or as its signs suggest it."""
    found = None
    if observation.classes <= _DENSE_CLASSES:
        found = _attempt(observation, "rlg", strict=True)
    return found or run_attack(observation, "gradinversion")


def _with_found(
    observation: Observation, estimate: Restoration, partial: Restoration, clear: bool
) -> Restoration:
    """An estimate with what is certain of the samples that `exact` found: no count is below it."""
    certain, total = partial.certain, observation.num_instances
    assert certain is not None, "exact says what it found"
    least = int(certain.sum())
    if total is not None and least > total:
        return estimate
    found = replace(
        estimate,
        certain=certain,
        embeddings=partial.embeddings,
        embedding_labels=partial.embedding_labels,
        invisible=partial.invisible,
        present=estimate.present | (certain > 0),
    )
    if not clear and found.counts is not None and found.attack != "rlg":
        found = replace(found, flags=(*found.flags, *partial.flags))
    values = estimate.raw if estimate.raw is not None else estimate.counts
    if values is None or estimate.counts is None or total is None or not least:
        return found
    counts = certain + project_to_counts(values.double() - certain, total - least)
    rounded = estimate.rounded
    return replace(
        found,
        counts=counts,
        present=counts > 0,
        proportions=counts.double() / total,
        rounded=None if rounded is None else torch.maximum(rounded, certain),
    )


def _disagree(best: Estimate, estimates: list[Estimate]) -> bool:
    """Whether another estimate contradicts the one that is taken, by more than both may be off.

    One that is not credible contradicts none that is; where none is, any difference counts.
    """
    counts = best.found.counts
    if counts is None or best.found.attack == "rlg":
        return False
    for other in estimates:
        raw, errors = other.found.raw, other.found.standard_errors
        if other.found.attack == best.found.attack or raw is None or other.found.counts is None:
            continue
        if best.unclipped and not other.unclipped:
            # It is of a gradient that is known to be too small.
            continue
        if best.error == math.inf:
            if not torch.equal(other.found.counts, counts):
                return True
        elif other.error < math.inf:
            own = errors if errors is not None else torch.full_like(raw, other.distance)
            if bool(((raw - counts).abs() > 0.5 + _APART * own).any()):
                return True
    return False
