"""Which samples found are certain: that there are such, each as often as its weight says."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.low_rank import LowRank


def couplings(
    factors: LowRank,
    points: Float[Tensor, "samples rank"],
    inside: Float[Tensor, "samples rank"],
) -> tuple[Float[Tensor, "samples samples"], Float[Tensor, "samples samples"]]:
    """The couplings of all pairs of samples, and their errors.

    Samples of one batch are biorthogonal: for contributions c and coordinates a,
    ``(U^T c_j)^T S^-1 a_k`` is 1 if j = k, and 0 otherwise.

    Args:
        factors: Factors of a layer's gradient.
        points: Coordinates a.
        inside: ``U^T c``.
    """
    dual_points, dual_inside = points / factors.values, inside / factors.values
    rounding = tolerances.CLIENT_ROUNDING * (
        inside.norm(dim=1)[:, None] * dual_points.norm(dim=1)
        + dual_inside.norm(dim=1)[:, None] * points.norm(dim=1)
    )
    noise = factors.noise * dual_inside.norm(dim=1)[:, None] * dual_points.norm(dim=1)
    return inside @ dual_points.T, rounding + noise


def stand_apart(
    factors: LowRank,
    points: Float[Tensor, "samples rank"],
    inside: Float[Tensor, "samples rank"],
) -> Bool[Tensor, " samples"]:
    """Which samples are biorthogonal to all others beyond the errors of that test.

    One sample that was found twice couples with itself, and where singular values are errors
    everything passes for biorthogonal. Of a strong and a weak sample one coupling is all error, and
    the other decides. Samples whose own weight is all error accuse no others.

    Args:
        factors: Factors of a layer's gradient.
        points: Coordinates a.
        inside: ``U^T c``.
    """
    if not len(points):
        return torch.zeros(0, dtype=torch.bool, device=points.device)
    coupling, errors = couplings(factors, points, inside)
    off = (coupling - torch.eye(len(points)).to(coupling)).abs()
    conclusive = off + errors < tolerances.COUPLING
    refuted = off - errors > tolerances.COUPLING
    clash = ~(conclusive | conclusive.T) | refuted | refuted.T
    blurred = clash.diagonal()
    apart: Tensor = ~blurred & ~(clash & ~blurred).any(dim=1)
    return apart


def agreed_divisor(inverse_weights: Float[Tensor, " samples"]) -> float | None:
    """What more than half of the weights say that the loss divides by, or None.

    Each inverse weight is the divisor, or a fraction of it for a repeated sample. Samples of which
    most are there twice agree on half of the divisor, which is as good.

    Args:
        inverse_weights: The loss's divisor over how often each sample is in the batch.
    """
    if not len(inverse_weights):
        return None
    middle = float(inverse_weights.median())
    for divisor in (middle, 2.0 * middle):
        if 2 * int(has_whole_weight(inverse_weights, divisor).sum()) > len(inverse_weights):
            return divisor
    return None


def has_whole_weight(
    inverse_weights: Float[Tensor, " samples"], divisor: float
) -> Bool[Tensor, " samples"]:
    """Which samples are in the batch a whole number of times, within a tenth.

    Args:
        inverse_weights: The loss's divisor over how often each sample is in the batch.
        divisor: What the loss divides by.
    """
    times = divisor / inverse_weights
    whole = times.round()
    near = (times - whole).abs() <= tolerances.SURE_TIMES
    result: Tensor = near & (whole >= 1.0) & (whole <= tolerances.MOST_TIMES)
    return result
