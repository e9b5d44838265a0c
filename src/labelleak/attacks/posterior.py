"""What counts are expected to be, given an estimate and that no class is favored beforehand."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Standard errors of a sample variance beyond which chance does not explain it.
_ERRORS = 3.0


def expected_counts(
    raw: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"] | float,
    total: int,
) -> Float[Tensor, " classes"]:
    """Estimates of the counts, each drawn toward an even batch as far as its error asks for.

    Counts are taken to scatter about ``total / classes`` as those of a batch drawn at random; or,
    if estimates scatter by more than that and their errors explain, by the rest as well (empirical
    Bayes).

    Args:
        raw: Real-valued counts, float64, shape (classes,).
        errors: Their standard errors, likewise, or one for all.
        total: Number of instances.

    Returns:
        float64, shape (classes,).
    """
    classes = len(raw)
    mean = total / classes
    variances = torch.as_tensor(errors, dtype=raw.dtype, device=raw.device).square().expand_as(raw)
    seen = (raw - mean).square().mean()
    prior, own = mean * (1.0 - 1.0 / classes), float(variances.mean())
    prior += max(float(seen) - _most_explained(prior + own, classes), 0.0)
    kept: Tensor = prior / (prior + variances)
    return mean + kept * (raw - mean)


def is_noise(
    raw: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"],
    total: int,
    *,
    confirmed: bool,
) -> bool:
    """Whether estimates scatter no more than their errors and a batch drawn at random explain.

    They say little of the counts then, and even ones are as good a guess.

    Args:
        raw: Real-valued counts, float64, shape (classes,).
        errors: Their standard errors, likewise.
        total: Number of instances.
        confirmed: Whether something else speaks for even counts. Otherwise only the expected
            scatter is explained, without three standard errors for chance.
    """
    classes = len(raw)
    mean = total / classes
    seen = float((raw - mean).square().mean())
    expected = mean * (1.0 - 1.0 / classes) + float(errors.square().mean())
    return seen <= (_most_explained(expected, classes) if confirmed else expected)


def _most_explained(variance: float, classes: int) -> float:
    """The largest sample variance that chance explains, of so many counts of this variance."""
    return variance * (1.0 + _ERRORS * math.sqrt(2.0 / (classes - 1)))
