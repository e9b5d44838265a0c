"""From an estimate of the mean prediction over the batch to counts with standard errors."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from labelleak.attacks.conclusion import are_integral, conclude
from labelleak.attacks.presence import believable, favors_few
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Flag, Restoration

# Batch sizes that are tried when nobody told: as long as counts can still be told from each other.
_LARGEST_BATCH = 4096
_WHOLE = 0.2
# Counts of which fewer are expected to be right are flagged as guesses between neighbours.
_RIGHT = 0.75
# Evidence (a logarithm of odds) for a batch size, beyond that for the number of sizes tried.
_EVIDENCE = 7.0
# A count that is so many errors from a whole number is none.
_MOST_ERRORS = 10.0


class MeanPrediction(NamedTuple):
    """An estimate of the mean prediction, and what is needed to make counts of it.

    Attributes:
        probabilities: float64, shape (classes,), summing to one. With class weights or smoothing
            the mean is weighted as the samples are in the loss.
        replicates: Estimates that scatter about the former as it does about the truth, float64,
            shape (classes, replicates).
        bias_gradient: Gradient of the head's bias in its own unit, float64, shape (classes,).
        noise: Standard deviation of the noise in an entry of a bias gradient that is given.
        samples: Number of independent pieces of evidence that the scatter is estimated from.
    """

    probabilities: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    noise: float = 0.0
    samples: int | None = None


def raw_counts(
    observation: Observation,
    probabilities: Float[Tensor, "classes estimates"],
    bias_gradient: Float[Tensor, "classes _"],
    instances: float,
    batch_size: float,
) -> Float[Tensor, "classes estimates"]:
    """Real-valued counts that mean prediction and bias gradient stand for.

    With class weights w and label smoothing a, one sample of class j adds
    ``w_j (1 - a)(p - y_j) + (a / C)(sum(w) p - w)`` to the loss's gradient. With x_j = n_j w_j,
    X = sum(x), N = sum(n):

        K db = ((1 - a) X + a mean(w) N) p - (1 - a) x - (a / C) w N

    A mean loss divides by X, so X = K in its units and N follows from ``sum(x / w) = N``; for a
    sum N = K and X follows from the same. Plain cross-entropy leaves ``x = K (p - db)``.

    Args:
        observation: Of the loss: reduction, label smoothing, class weights.
        probabilities: Mean predictions, one estimate per column, float64.
        bias_gradient: In its own unit, float64, one column or one per estimate.
        instances: Number of instances of the update.
        batch_size: Number of samples of one step, by which a summed loss is larger.

    Returns:
        Counts that sum to `instances` as far as the bias gradient sums to zero.
    """
    smoothing, classes = observation.loss.label_smoothing, observation.classes
    keep = 1.0 - smoothing
    scale = observation.loss.scale(batch_size)
    target = instances * bias_gradient / scale
    weights = observation.loss.weights(observation.classes, bias_gradient)[:, None]
    # Both unknowns enter linearly: x = fixed + X per_x + N per_n.
    fixed, per_x = -target / keep, probabilities
    per_n = smoothing * (weights.mean() * probabilities - weights / classes) / keep
    if not observation.loss.averages:
        constant = fixed + instances * per_n
        x = constant + per_x * (instances - (constant / weights).sum(0)) / (per_x / weights).sum(0)
        return x / weights
    constant = fixed + instances * per_x
    number = (constant / weights).sum(0) / (1.0 - (per_n / weights).sum(0))
    counts = (constant + number * per_n) / weights
    if observation.loss.class_weights is None:
        return counts
    sums = counts.sum(0)
    return torch.where(sums > 0, counts * (instances / sums), counts)


def counts_of(attack: str, observation: Observation, mean: MeanPrediction) -> Restoration:
    """Counts with standard errors; without a batch size the one that fits, or proportions.

    Raises:
        MissingKnowledge: A summed loss, no batch size, and none that the gradient shows.
    """
    size = observation.batch_size
    if size is None and observation.classes > 2 and not favors_few(mean.probabilities):
        size = _batch_size_that_fits(observation, mean)
    if size is None and not observation.loss.averages:
        raise MissingKnowledge(
            f"{attack} on a summed loss needs the batch size (batch_size=K, --batch-size K): "
            "without it the gradient has no scale"
        )
    total = observation.num_instances
    if total is None and size is not None:
        total = size * observation.local_steps // observation.training.epochs
    raw, errors = _with_errors(observation, mean, total or 1, size or 1)
    flags: tuple[Flag, ...] = ()
    if total is not None:
        # The share of counts that rounding gets right, if errors are normal. Those of a bias
        # gradient that was itself restored are larger, and not known.
        right = float(torch.erf(0.5 / (math.sqrt(2.0) * errors.clamp_min(1e-9))).mean())
        if right < _RIGHT or not (observation.has_bias or are_integral(raw)):
            flags = (Flag.NOT_INTEGRAL,)
    known = total is None or observation.has_bias
    return conclude(
        observation,
        raw,
        total,
        standard_errors=errors if known else None,
        errors=believable(errors, mean.probabilities),
        flags=flags,
    )


def _with_errors(
    observation: Observation, mean: MeanPrediction, instances: int, batch_size: int
) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """Real-valued counts and their standard errors, for one number of instances."""
    raw, scatter, noise = _scattered(observation, mean, instances, batch_size)
    return raw, (scatter.square().mean(dim=1) + noise.square()).sqrt()


def _scattered(
    observation: Observation, mean: MeanPrediction, instances: int, batch_size: int
) -> tuple[
    Float[Tensor, " classes"], Float[Tensor, "classes replicates"], Float[Tensor, " classes"]
]:
    """Real-valued counts, deviations that scatter as they do, and what noise adds to their error.

    All three are linear in the batch size where instances are a multiple of it.
    """
    given = mean.bias_gradient[:, None]
    raw = raw_counts(observation, mean.probabilities[:, None], given, instances, batch_size)[:, 0]
    others = raw_counts(observation, mean.replicates, given, instances, batch_size)
    # Few rows tell little about their own scatter: Student's quantile in place of the normal one.
    freedom = (mean.samples or observation.classes) - 1
    scatter = (others - raw[:, None]) * float(stdtrit(freedom, 0.975) / NORMAL_QUANTILE)
    weights = observation.loss.weights(observation.classes, raw)
    scale = observation.loss.scale(batch_size)
    slope = instances / (scale * (1.0 - observation.loss.label_smoothing) * weights)
    return raw, scatter, slope * mean.noise


def _batch_size_that_fits(observation: Observation, mean: MeanPrediction) -> int | None:
    """The smallest batch size that makes all counts whole, if chance does not explain it.

    Errors of counts grow with the size; where they reach `_WHOLE` nothing can be told any more.
    The evidence compares the density of the distances to whole numbers, normal with the counts'
    standard errors, with a uniform one.
    """
    steps = observation.local_steps // observation.training.epochs
    # Counts and their errors are linear in the size, of which two tell all others.
    raws, scatters, noises = zip(
        *(_scattered(observation, mean, size * steps, size) for size in (1, 2)), strict=True
    )
    per_raw, per_scatter = raws[1] - raws[0], scatters[1] - scatters[0]
    first, each = scatters[0] - per_scatter, per_scatter
    fixed, mixed, growing = (
        float((one * other).mean()) for one, other in ((first, first), (first, each), (each, each))
    )
    fixed_noise, noise = 2.0 * noises[0] - noises[1], noises[1] - noises[0]
    best = None
    for size in range(1, _LARGEST_BATCH + 1):
        raw = raws[0] + (size - 1) * per_raw
        variance = fixed + 2.0 * size * mixed + size**2 * growing
        variance += float((fixed_noise + size * noise).square().mean())
        error = max(math.sqrt(max(variance, 0.0)), 1e-4)
        if error > _WHOLE:
            break
        distances = raw - raw.round().clamp_min(0.0)
        if float(distances.abs().max()) > _MOST_ERRORS * error:
            # Whole counts of many absent classes shall not outvote one that is not whole.
            continue
        density = torch.exp(-0.5 * (distances / error).square()) / (error * math.sqrt(2 * math.pi))
        evidence = float((density + 1e-9).log().sum())
        if evidence > _EVIDENCE + math.log(size) and (best is None or evidence > best[0] + 3.0):
            # A multiple of the right size makes counts whole, too, with less evidence.
            best = (evidence, size)
    return None if best is None else best[1]
