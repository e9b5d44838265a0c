"""The batch size that makes all counts whole, where nobody told it."""

import math

import torch

from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction, scattered_counts
from labelleak.observation import Observation

# Largest batch size that is tried.
_LARGEST = 4096
# Errors of counts grow with the batch size. From this one on, whole numbers tell nothing.
_LARGEST_ERROR = 0.2
# Floor of the error of a count, for rounding errors of the gradient.
_LEAST_ERROR = 1e-4
# Evidence (log odds) that a size needs, beyond the logarithm of the number of sizes tried so far.
_EVIDENCE = 7.0
# A multiple of the right size makes counts whole, too: a larger size needs so much more evidence.
_MORE_EVIDENCE = 3.0
# Density of counts that are not whole.
_FLOOR = 1e-9
# So many of the largest counts are looked at first.
_SCREENED = 256
# A count farther from the nearest whole number, in standard errors, rules a size out.
_MOST_ERRORS = 10.0


def fitting_batch_size(observation: Observation, mean: MeanPrediction) -> int | None:
    """The smallest batch size that makes all counts whole, if chance does not explain it.

    The evidence compares the density of the distances to whole numbers, normal with the counts'
    standard errors, with a uniform one.

    Args:
        observation: Of the loss and the local steps.
        mean: The mean prediction, which does not depend on the batch size.

    Returns:
        The size, or None where no size has enough evidence.
    """
    steps = observation.local_steps // observation.training.epochs
    # Counts and their errors are linear in the size, so two sizes give all others.
    one, two = (scattered_counts(observation, mean, size * steps, size) for size in (1, 2))
    per_raw, per_scatter, per_noise = (
        two.raw - one.raw,
        two.scatter - one.scatter,
        two.noise - one.noise,
    )
    fixed, fixed_noise = one.scatter - per_scatter, one.noise - per_noise
    squares = float(fixed.square().mean())
    products = float((fixed * per_scatter).mean())
    growing = float(per_scatter.square().mean())
    squares += float(fixed_noise.square().mean())
    products += float((fixed_noise * per_noise).mean())
    growing += float(per_noise.square().mean())
    largest = per_raw.abs().topk(min(_SCREENED, len(per_raw))).indices
    best, most = None, _EVIDENCE
    for size in range(1, _LARGEST + 1):
        variance = squares + 2.0 * size * products + size**2 * growing
        error = max(math.sqrt(max(variance, 0.0)), _LEAST_ERROR)
        if error > _LARGEST_ERROR:
            break
        least = max(most, _EVIDENCE + math.log(size))
        peak = 1.0 / (error * math.sqrt(2 * math.pi))
        few = one.raw[largest] + (size - 1) * per_raw[largest]
        off = float((few - few.round().clamp_min(0.0)).abs().max())
        # Neither the largest counts nor counts that are all whole would do.
        if off > _MOST_ERRORS * error or len(per_raw) * math.log(peak + _FLOOR) <= least:
            continue
        raw = one.raw + (size - 1) * per_raw
        distances = raw - raw.round().clamp_min(0.0)
        if float(distances.abs().max()) > _MOST_ERRORS * error:
            # Otherwise whole counts of many absent classes would outvote one that is not whole.
            continue
        density = torch.exp(-0.5 * (distances / error).square()) * peak
        evidence = float((density + _FLOOR).log().sum())
        if evidence > least:
            best, most = size, evidence + _MORE_EVIDENCE
    return best
