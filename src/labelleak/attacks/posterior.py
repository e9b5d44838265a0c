"""What counts are expected to be, given an estimate and that no class is favored beforehand."""

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
    seen = (raw - mean).square().sum() / (classes - 1)
    prior, own = mean * (1.0 - 1.0 / classes), float(variances.mean())
    explained = (prior + own) * (1.0 + _ERRORS * (2.0 / (classes - 1)) ** 0.5)
    prior += max(float(seen) - explained, 0.0)
    kept: Tensor = prior / (prior + variances)
    return mean + kept * (raw - mean)
