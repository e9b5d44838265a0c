"""The standard evaluation without knobs: what the observation allows, judged without the truth."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.attacks._flags import defence_suspected
from labelleak.attacks.mbi import moment
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration, project_to_counts

Run = Callable[..., Restoration]
"""Runs an attack by name with its hyper-parameters; raises `MissingKnowledge` where it cannot."""

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
# Perplexity of the mean prediction, relative to the number of classes. Below, predictions have
# become sure of some classes, and no longer follow from a mean embedding.
_FLAT = 0.85
# An error of the counts (root mean square) under which a second estimate is not needed, and one
# above which rounding is no better than chance.
_PRECISE = 0.08
_TRUSTED = 0.2
# So many standard errors between two estimates of a count are no chance.
_APART = 4.0
# How much smaller a clipped gradient may be, and how many factors are tried.
_LARGEST_FACTOR = 30.0
_FACTORS = 500
# A bias gradient that spreads so much more than that of any even batch is no measure of an impact.
_MOST_MOMENT = 1.2


@dataclass(frozen=True)
class _Estimate:
    """Counts, and by how much they are off, as far as that shows without the truth.

    Attributes:
        found: The restoration.
        error: Root mean square of the error of a count; infinite where assumptions do not hold.
        distance: The same of the distance from counts that could be; at most that is seen of it.
    """

    found: Restoration
    error: float
    distance: float = math.inf


def automatic(observation: Observation, run: Run, time_limit: float) -> Restoration:
    """Run what the observation allows and take what can be trusted most.

    A certificate by `exact` ends it. Otherwise the estimators of counts are compared by what can be
    measured without the truth: the standard errors that they claim, how far their real-valued
    counts are from counts that could be (whole, not negative, of the right sum), and whether the
    mean prediction is as even as their assumptions have it.

    Args:
        observation: What the server sees.
        run: Runs an attack by name.
        time_limit: Seconds, positive.

    Returns:
        What the attack that spoke restored.
    """
    end = time.monotonic() + time_limit
    estimates = _estimates(observation, run, time_limit)
    best = min(estimates, key=lambda one: (one.error, one.distance), default=None)
    clear = best is not None and best.error < _TRUSTED
    share = max(_SEARCHING * (end - time.monotonic()), _LEAST_SEARCH * time_limit)
    partial = _search(observation, run, min(share, _CONFIRMING) if clear else share)
    if partial is not None and partial.certified:
        return partial
    best = _coarse(observation, run, estimates, best)
    if best is None:
        return partial or run("gradinversion")
    found = best.found if partial is None else _with_found(observation, best.found, partial, clear)
    if _disagree(best, estimates):
        found = replace(found, flags=(*found.flags, Flag.ATTACKS_DISAGREE))
    return found


def _search(observation: Observation, run: Run, seconds: float) -> Restoration | None:
    """What `exact` finds, where the gradient is one that it can take apart."""
    classes, features = observation.classes, observation.head.features
    few, many = sorted((classes, features + 1))
    size = observation.batch_size
    if few**2 * many > _MOST_DECOMPOSED or (size is not None and size >= min(classes, features)):
        return None
    if defence_suspected(observation):
        # Nothing that was added to a gradient can be rebuilt.
        return None
    return _attempt(run, "exact", time_limit=seconds)


def _attempt(run: Run, name: str, **hyper_parameters: object) -> Restoration | None:
    try:
        return run(name, **hyper_parameters)
    except MissingKnowledge:
        return None


def _estimates(observation: Observation, run: Run, seconds: float) -> list[_Estimate]:
    """Estimates of the counts from whichever attack can make one."""
    found = [_attempt(run, "pooled")]
    if observation.classes <= _DENSE_CLASSES:
        found.append(_attempt(run, "ilrg"))
        if _worthwhile(observation, found[0]) and affordable(observation, seconds):
            found.append(_attempt(run, "calibrated"))
        if observation.auxiliary is not None:
            found.append(_attempt(run, "rlu"))
    return [_judged(observation, one) for one in found if one is not None]


def _judged(observation: Observation, found: Restoration) -> _Estimate:
    """How far an estimate may be off.

    Standard errors are believed where the mean prediction is even and the counts are as near to
    counts that could be as they claim. Without standard errors the distance from such counts is the
    error, if it is so small that chance does not explain it.
    """
    raw, errors = found.raw, found.standard_errors
    assert raw is not None, "an attack that estimates counts"
    total = observation.num_instances if found.counts is None else int(found.counts.sum())
    even = errors is None or _is_even(observation, found)
    if total is None:
        # Shares have no distance from whole numbers: the sharper attack first.
        return _Estimate(found, math.inf, float(errors is None) if even else math.inf)
    distance = _distance(raw, total)
    if errors is None:
        credible = distance < _by_chance(len(raw))
        return _Estimate(found, distance if credible else math.inf, distance)
    claimed = float(errors.square().mean().sqrt())
    if even and distance < 2.0 * claimed + 0.05:
        return _Estimate(found, max(distance, claimed), distance)
    whole = _scaled_back(observation, found, claimed) if even else None
    return whole or _Estimate(found, math.inf, distance)


def _distance(raw: Float[Tensor, " classes"], total: int) -> float:
    """From the nearest counts that could be, root mean square."""
    return float((raw - project_to_counts(raw, total)).square().mean().sqrt())


def _scaled_back(observation: Observation, found: Restoration, claimed: float) -> _Estimate | None:
    """The estimate for the scale at which its counts become whole, if there is one above 1.

    A gradient that was clipped is too small by one factor. The mean prediction does not change with
    it, and only ``n = K (p - s db)`` of the right s is whole and not negative.
    """
    plain = observation.class_weights is None and not observation.label_smoothing
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if not plain or bias is None or raw is None or counts is None:
        return None
    total = int(counts.sum())
    scale = (observation.batch_size or 1) if observation.reduction == "sum" else 1
    seen = total * bias.double() / scale
    factors = torch.logspace(0.0, math.log10(_LARGEST_FACTOR), _FACTORS, dtype=torch.float64)
    distances = [_distance(raw - (factor - 1.0) * seen, total) for factor in factors.tolist()]
    least = min(distances)
    if least > min(_by_chance(len(raw)), 2.0 * claimed + 0.02):
        return None
    raw = raw - (float(factors[distances.index(least)]) - 1.0) * seen
    counts = project_to_counts(raw, total)
    whole = replace(
        found,
        raw=raw,
        counts=counts,
        present=counts > 0,
        proportions=counts.double() / total,
        rounded=raw.clamp(0.0, total).round().long(),
        flags=(*found.flags, Flag.DEFENCE_SUSPECTED),
    )
    return _Estimate(whole, max(least, claimed), least)


def _by_chance(classes: int) -> float:
    """Distance from whole numbers, root mean square, that chance reaches once in a thousand times.

    Fractions without meaning have a mean square of 1/12 and a variance of it of 1/180.
    """
    least = 1.0 / 12.0 - 3.0 * math.sqrt(1.0 / (180.0 * classes))
    return max(0.05, min(_TRUSTED, math.sqrt(max(0.0, least))))


def _is_even(observation: Observation, found: Restoration) -> bool:
    """Whether the mean prediction that the counts stand for, ``n / K + db``, favours no classes."""
    bias, raw = observation.gradient.bias, found.raw
    if bias is None or raw is None:
        return True
    scale = (observation.batch_size or 1) if observation.reduction == "sum" else 1
    total = 1 if found.counts is None else int(found.counts.sum())
    prediction = (raw / total + bias.double() / scale).clamp_min(1e-12)
    prediction = prediction / prediction.sum()
    perplexity = float(torch.exp(-(prediction * prediction.log()).sum()))
    return perplexity > _FLAT * observation.classes


def _worthwhile(observation: Observation, pooled: Restoration | None) -> bool:
    """Whether inputs sent through the model may tell more than the gradient's rows do alone.

    Dummies say nothing of a network that has learned, and rows say enough where they agree.
    """
    if pooled is None or observation.auxiliary is not None:
        return True
    return _is_even(observation, pooled) and _judged(observation, pooled).error >= _PRECISE


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


def _coarse(
    observation: Observation, run: Run, estimates: list[_Estimate], best: _Estimate | None
) -> _Estimate | None:
    """What remains where no estimate is credible: attacks that ask less of the network."""
    credible = best is not None and best.error < math.inf
    mistakes = next((one for one in estimates if one.found.attack == "rlu"), None)
    if mistakes is not None and (not credible or observation.local_steps > 1):
        return mistakes
    if not observation.has_bias and (best is None or best.error >= _TRUSTED):
        return _without_bias(observation, run) or best
    if credible:
        return best
    found = _attempt(run, "mbi")
    if found is None or moment(observation) > _MOST_MOMENT:
        return best
    return _Estimate(found, math.inf)


def _without_bias(observation: Observation, run: Run) -> _Estimate | None:
    """A set that its rank proves, where there are only guesses at counts."""
    dense = observation.classes <= _DENSE_CLASSES
    found = _attempt(run, "rlg", strict=True) if dense else None
    return None if found is None else _Estimate(found, math.inf)


def _with_found(
    observation: Observation, estimate: Restoration, partial: Restoration, clear: bool
) -> Restoration:
    """An estimate with what is certain of the samples that `exact` found: no count is below it."""
    certain, total = partial.certain, observation.num_instances
    assert certain is not None, "exact says what it found"
    found = replace(
        estimate,
        certain=certain,
        embeddings=partial.embeddings,
        embedding_labels=partial.embedding_labels,
        invisible=partial.invisible,
    )
    if not clear:
        found = replace(found, flags=(*found.flags, *partial.flags))
    values = estimate.raw if estimate.raw is not None else estimate.counts
    least = int(certain.sum())
    if values is None or estimate.counts is None or total is None or not 0 < least <= total:
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


def _disagree(best: _Estimate, estimates: list[_Estimate]) -> bool:
    """Whether another estimate contradicts the one that is taken, by more than both may be off.

    One that is not credible contradicts none that is.
    """
    counts = best.found.counts
    if counts is None:
        return False
    for other in estimates:
        raw, errors = other.found.raw, other.found.standard_errors
        if other.found.attack == best.found.attack or raw is None or other.found.counts is None:
            continue
        if best.error < math.inf <= other.error:
            continue
        own = errors if errors is not None else torch.full_like(raw, other.distance)
        if bool(((raw - counts).abs() > 0.5 + _APART * own).any()):
            return True
    return False
