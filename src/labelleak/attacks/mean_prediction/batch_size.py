"""The batch size that makes all counts whole, where nobody told it."""

import math

import torch

from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction, scattered_counts
from labelleak.observation import Observation

# Sizes that are tried: up to here counts can still be told from each other.
_LARGEST = 4096
# Errors of counts grow with the size. At this one, every distance from a whole number is likely.
_LARGEST_ERROR = 0.2
# Errors are not taken for smaller than this, whatever rounding leaves of them.
_LEAST_ERROR = 1e-4
# Evidence (logarithm of odds) for a size that is taken, beyond that for the number of sizes tried.
_EVIDENCE = 7.0
# A multiple of the right size makes counts whole, too: a larger size needs so much more evidence.
_MORE_EVIDENCE = 3.0
# A count that is more than so many errors from a whole number is none.
_MOST_ERRORS = 10.0


def fitting_batch_size(observation: Observation, mean: MeanPrediction) -> int | None:
    """The smallest batch size that makes all counts whole, if chance does not explain it.

    The evidence compares the density of the distances to whole numbers, normal with the counts'
    standard errors, with a uniform one.

    Args:
        observation: Of the loss and the local steps.
        mean: The mean prediction, which does not depend on the batch size.

    Returns:
        The size, or None where no size stands out.
    """
    steps = observation.local_steps // observation.training.epochs
    # Counts and their errors are linear in the size, of which two tell all others.
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
    best, most = None, _EVIDENCE
    for size in range(1, _LARGEST + 1):
        variance = squares + 2.0 * size * products + size**2 * growing
        variance += float((fixed_noise + size * per_noise).square().mean())
        error = max(math.sqrt(max(variance, 0.0)), _LEAST_ERROR)
        if error > _LARGEST_ERROR:
            break
        raw = one.raw + (size - 1) * per_raw
        distances = raw - raw.round().clamp_min(0.0)
        if float(distances.abs().max()) > _MOST_ERRORS * error:
            # Whole counts of many absent classes shall not outvote one that is not whole.
            continue
        density = torch.exp(-0.5 * (distances / error).square()) / (error * math.sqrt(2 * math.pi))
        evidence = float((density + 1e-9).log().sum())
        if evidence > _EVIDENCE + math.log(size) and evidence > most:
            best, most = size, evidence + _MORE_EVIDENCE
    return best
