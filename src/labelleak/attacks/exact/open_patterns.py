"""The samples of a layer before a head of two classes, by all patterns of its open units.

Of two classes q is ``(s, -s)``. So ``d_k = (z_k > 0) * (W_head^T q_k)`` is, up to a factor, the
difference v of the head's rows where the units of sample k are open, and zero elsewhere. Divided
by v, the column space holds K vectors of zeros and ones. Such a vector follows from K of its
entries: all 2^K of them are tried, and the other entries confirm one.
"""

import math
from collections.abc import Iterator
from itertools import combinations, islice

import scipy.linalg
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.low_rank import LowRank
from labelleak.attacks.exact.open_units import inputs_from_directions

# Largest rank: 2^26 patterns take about three seconds. So many are tried at a time: 32 MB.
_MOST_BITS, _AT_ONCE = 26, 2**22
# Units whose entry of v is below this share of the largest say little beside errors.
_LEAST_SLOPE = 0.1
# An entry this close to zero or one may be one of them; samples that are seen at all have far
# smaller errors.
_NEAR = 0.1
# At most so many entries confirm a pattern, and so many more than half of the rank at least: chance
# makes one in five of them near.
_CONFIRMING, _SPARE = 32, 10
# Most selections that are compared where mixtures are among the patterns.
_SELECTIONS = 512


def can_try_patterns(factors: LowRank, head: Float[Tensor, "classes outputs"]) -> bool:
    """Whether all patterns can be tried, and enough units are left that confirm one.

    Args:
        factors: Factors of the layer's gradient.
        head: Weight of the head.
    """
    if len(head) != 2 or factors.rank > _MOST_BITS:
        return False
    # Chance confirms a pattern less than once in 10^6 times.
    return len(_telling_units(head)) >= 1.5 * factors.rank + _SPARE


def directions_by_open_patterns(
    factors: LowRank,
    weight: Float[Tensor, "outputs rank"],
    head: Float[Tensor, "two outputs"],
    clock: Clock,
) -> Float[Tensor, "samples rank"]:
    """Directions of the gradients d of all samples that are seen, as coordinates b of ``d = U b``.

    Args:
        factors: Factors of the layer's gradient.
        weight: ``[W, b] V``, which gives the layer's outputs for an input's coordinates.
        head: Weight of the head.
        clock: Time limit.

    Returns:
        At most as many as the rank, linearly independent.
    """
    slope, none = head[0] - head[1], factors.left.new_zeros(0, factors.rank)
    telling = _telling_units(head)
    entries = factors.left[telling] / slope[telling, None]
    # The entries that determine the others best.
    order = scipy.linalg.qr(entries.T.cpu().numpy(), mode="r", pivoting=True)[1]
    order = torch.from_numpy(order.copy()).long().to(telling.device)
    base, others = entries[order[: factors.rank]], entries[order[factors.rank :]]
    patterns = [*_confirmed(torch.linalg.solve(base, others, left=False), clock)]
    directions = torch.linalg.solve(base.T, torch.cat([none, *patterns]), left=False)
    # Every open unit counts, not only those that were guessed.
    is_open = directions @ factors.left.T / slope > 0.5
    contributions = torch.nn.functional.normalize(is_open.double() * slope, dim=1)
    # Errors of strong samples blur the weak ones, so that nothing but a mixture is worse than this.
    fitting = factors.outside(contributions).norm(dim=1) <= tolerances.MOST_MISFIT
    return _consistent(factors, weight, (contributions @ factors.left)[fitting], is_open[fitting])


def _telling_units(head: Float[Tensor, "two outputs"]) -> Int[Tensor, " units"]:
    slope = (head[0] - head[1]).abs()
    return (slope > _LEAST_SLOPE * slope.max()).nonzero()[:, 0]


def _consistent(
    factors: LowRank,
    weight: Float[Tensor, "outputs rank"],
    directions: Float[Tensor, "directions rank"],
    is_open: Bool[Tensor, "directions outputs"],
) -> Float[Tensor, "samples rank"]:
    """The directions, less those whose pattern is a mixture of others.

    Where a sample's open units are among another's, the difference is a pattern as well. Of the
    selections that are possible, the one whose inputs open most nearly the units of their patterns
    is taken.
    """
    extra = len(directions) - factors.rank
    if extra <= 0:
        return directions
    best, least = directions[:0], math.inf
    for dropped in islice(combinations(range(len(directions)), extra), _SELECTIONS):
        kept = torch.ones_like(is_open[:, 0])
        kept[list(dropped)] = False
        inputs, failed = inputs_from_directions(factors, directions[kept])
        if failed:
            continue
        inputs = inputs / (inputs @ factors.right[-1])[:, None]
        other = int(((inputs @ weight.T > 0) != is_open[kept]).sum())
        if other < least:
            best, least = directions[kept], other
    return best


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
