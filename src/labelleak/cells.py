"""Small cells: which counts that a site must not tell an update tells with confidence."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from labelleak.restoration import Restoration

USUAL_FLOOR = 10
"""The smallest count that usual rules for statistics of patients let out."""


class CountBounds(NamedTuple):
    """What a restoration says of each count with confidence: a smallest and a largest number.

    Attributes:
        low: int64, shape (classes,).
        high: int64, shape (classes,).
    """

    low: Int[Tensor, " classes"]
    high: Int[Tensor, " classes"]


def count_bounds(found: Restoration) -> CountBounds | None:
    """The whole numbers that a restoration leaves for each count.

    Proven counts leave one. A 95 % interval leaves the whole numbers in it, and at least the one
    that is nearest to the estimate. Samples whose label is sure are a lower bound, and what they
    leave of the batch an upper one.

    Args:
        found: The restoration.

    Returns:
        The bounds; None where it has no counts, or neither a certificate nor intervals.

    Examples:
        >>> import torch
        >>> raw, errors = torch.tensor([2.0, 0.1]).double(), torch.tensor([0.6, 0.2]).double()
        >>> found = Restoration(raw > 1, torch.tensor([2, 0]), raw=raw, standard_errors=errors)
        >>> count_bounds(found).low.tolist(), count_bounds(found).high.tolist()
        ([1, 0], [3, 0])
    """
    counts = found.counts
    if counts is None:
        return None
    if found.certified:
        return CountBounds(counts, counts)
    most = found.samples if found.multi_label else int(counts.sum())
    low, high = torch.zeros_like(counts), torch.full_like(counts, most or 0)
    intervals, raw = found.intervals, found.raw
    if intervals is not None and raw is not None:
        nearest = raw.round()
        low = torch.minimum(intervals[:, 0].ceil(), nearest).clamp_min(0).long()
        high = torch.maximum(intervals[:, 1].floor(), nearest).clamp_min(0).long()
    elif found.certain is None:
        return None
    if found.certain is not None:
        low = torch.maximum(low, found.certain)
    if found.certain is not None and not found.multi_label:
        high = torch.minimum(high, found.certain + int((counts - found.certain).sum()))
    return CountBounds(low, torch.maximum(low, high))


class SmallCells(NamedTuple):
    """The classes that a restoration says are small, or absent.

    Attributes:
        few: Whether it says that the class has 1 to floor - 1 samples, bool, shape (classes,).
        none: Whether it says that the class has none, bool, shape (classes,).
    """

    few: Bool[Tensor, " classes"]
    none: Bool[Tensor, " classes"]


def small_cells(bounds: CountBounds, floor: int = USUAL_FLOOR) -> SmallCells:
    """The classes of which bounds say that they are small, or absent.

    Args:
        bounds: See `count_bounds`.
        floor: The smallest count that may be told, at least 2.

    Examples:
        >>> import torch
        >>> bounds = CountBounds(torch.tensor([1, 0, 0, 8]), torch.tensor([3, 0, 3, 12]))
        >>> [told.tolist() for told in small_cells(bounds)]
        [[True, False, False, False], [False, True, False, False]]
    """
    return SmallCells((bounds.low >= 1) & (bounds.high < floor), bounds.high == 0)


def told_cells(
    found: Restoration, true: Int[Tensor, " classes"], floor: int = USUAL_FLOOR
) -> Bool[Tensor, " classes"] | None:
    """Small and absent classes that a restoration rightly says are small or absent.

    Args:
        found: The restoration.
        true: True counts, int64, shape (classes,).
        floor: The smallest count that may be told, at least 2.

    Returns:
        Bool, shape (classes,); None where `count_bounds` gives none.

    Examples:
        >>> import torch
        >>> found = Restoration(torch.tensor([True, False]), torch.tensor([3, 0]), certified=True)
        >>> told_cells(found, torch.tensor([3, 0])).tolist()
        [True, True]
    """
    bounds = count_bounds(found)
    if bounds is None:
        return None
    true = true.to(bounds.low.device)
    few, none = small_cells(bounds, floor)
    return (few & hidden_cells(true, floor) & (true > 0)) | (none & (true == 0))


def hidden_cells(true: Int[Tensor, " classes"], floor: int) -> Bool[Tensor, " classes"]:
    """The classes that a rule of `floor` hides: fewer samples than that, or none."""
    return true < floor
