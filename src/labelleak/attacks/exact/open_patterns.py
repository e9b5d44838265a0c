"""The samples of a layer before a head of two classes, by all patterns of its open units.

Of two classes q is ``(s, -s)``, so that ``d_k = (z_k > 0) * (W_head^T q_k)`` is, but for its length,
the difference v of the head's rows where units of sample k are open, and zero elsewhere. Divided
by v, the column space holds K vectors of zeros and ones. Such a vector follows from K of its
entries: all 2^K of them are tried, and the other entries confirm one.
"""

from collections.abc import Iterator

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.low_rank import LowRank

# Largest rank: 2^28 patterns take seconds. So many of them are tried at a time: 32 MB.
_MOST_BITS, _AT_ONCE = 28, 2**22
# Units whose entry of v is below this share of the largest say little beside errors.
_LEAST_SLOPE = 0.1
# An entry this close to zero or one may be one of them; samples that are seen at all have far
# smaller errors.
_NEAR = 0.1
# So many entries confirm a pattern: chance makes one in ten of them near.
_CONFIRMING = 32


def can_try_patterns(factors: LowRank, classes: int) -> bool:
    """Whether all patterns can be tried.

    Args:
        factors: Factors of the layer's gradient.
        classes: Number of classes.
    """
    return classes == 2 and factors.rank <= _MOST_BITS


def inputs_by_open_patterns(
    factors: LowRank, head: Float[Tensor, "two outputs"], clock: Clock
) -> Float[Tensor, "samples rank"]:
    """Directions of the inputs of all samples, as coordinates a.

    Args:
        factors: Factors of the layer's gradient.
        head: Weight of the head.
        clock: Time limit.

    Returns:
        As many as the rank, of any length; none where not all are found.
    """
    slope, none = head[0] - head[1], factors.left.new_zeros(0, factors.rank)
    telling = (slope.abs() > _LEAST_SLOPE * slope.abs().max()).nonzero()[:, 0]
    if len(telling) <= factors.rank:
        return none
    entries = factors.left[telling] / slope[telling, None]
    # The entries that determine the others best.
    order = scipy.linalg.qr(entries.T.cpu().numpy(), mode="r", pivoting=True)[1]
    order = torch.from_numpy(order.copy()).long().to(telling.device)
    base, others = entries[order[: factors.rank]], entries[order[factors.rank :]]
    patterns = [*_confirmed(torch.linalg.solve(base, others, left=False), clock)]
    directions = torch.linalg.solve(base.T, torch.cat([none, *patterns]), left=False)
    # Every open unit counts, not only those that were guessed.
    is_open = (directions @ factors.left.T / slope > 0.5).double()
    contributions = torch.nn.functional.normalize(is_open * slope, dim=1)
    known, outside = contributions @ factors.left, factors.outside(contributions).norm(dim=1)
    errors = factors.noise * (known / factors.values).norm(dim=1) * len(slope) ** 0.5
    allowed = tolerances.ERROR_MARGIN * errors + tolerances.DIRECTION
    known = known[outside <= allowed.clamp_max(tolerances.MOST_MISFIT)]
    if len(known) != factors.rank:
        return none
    # U S V^T is the sum of all U b (V a)^T.
    inputs, failed = torch.linalg.solve_ex(known.T, torch.diag(factors.values))
    return none if int(failed) else inputs


def _confirmed(
    mixing: Float[Tensor, "others rank"], clock: Clock
) -> Iterator[Float[Tensor, "confirmed rank"]]:
    """Patterns of the first entries that make the other entries zero or one, too.

    Args:
        mixing: The other entries as mixtures of the first.
        clock: Time limit.
    """
    rank = mixing.shape[1]
    mixing = mixing[:_CONFIRMING]
    ones, others = (_patterns(bits).to(mixing) for bits in (rank // 2, rank - rank // 2))
    by_ones, by_others = ones @ mixing[:, : rank // 2].T, others @ mixing[:, rank // 2 :].T
    together = max(1, _AT_ONCE // len(others))
    for start in range(0, len(ones), together):
        if clock.is_over:
            return
        part = slice(start, start + together)
        one, other = _is_near(by_ones[part, None, 0] + by_others[:, 0]).nonzero(as_tuple=True)
        one = one + start
        for unit in range(1, len(mixing)):
            near = _is_near(by_ones[one, unit] + by_others[other, unit])
            one, other = one[near], other[near]
        some = (one > 0) | (other > 0)
        yield torch.cat([ones[one[some]], others[other[some]]], dim=1)


def _patterns(bits: int) -> Float[Tensor, "patterns bits"]:
    """All vectors of so many zeros and ones; that of zeros first."""
    return ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1).double()


def _is_near(entries: Tensor) -> Tensor:
    """Whether entries are zero or one, about."""
    return (entries.abs() < _NEAR) | ((entries - 1.0).abs() < _NEAR)
