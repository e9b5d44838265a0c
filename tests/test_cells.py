import pytest
import torch

from labelleak.cells import count_bounds, told_cells
from labelleak.restoration import NORMAL_QUANTILE, Restoration


def restored(middle, half, **more):
    """An estimate with these 95 % intervals."""
    raw = torch.tensor(middle).double()
    counts = raw.round().clamp_min(0).long()
    errors = torch.tensor(half).double() / NORMAL_QUANTILE
    return Restoration(counts > 0, counts, raw=raw, standard_errors=errors, **more)


# Middle and half of an interval, true count, whether it is told under a rule of ten.
BY_HAND = [
    (3.0, 1.5, 3, True),  # 2 to 4
    (1.0, 1.2, 1, False),  # 0 to 2: it may be absent
    (9.0, 0.9, 9, True),  # 9 alone
    (9.0, 1.2, 9, False),  # 8 to 10: ten may be told
    (0.2, 0.5, 0, True),  # 0 alone
    (0.2, 0.9, 0, False),  # 0 or 1
    (-3.0, 1.0, 0, True),  # below zero is none
    (3.5, 0.2, 4, True),  # no whole number inside: the nearest
    (5.0, 2.0, 30, False),  # told as small, and it is not: nothing is given away
    (40.0, 2.0, 40, False),  # large
    (0.1, 0.3, 4, False),  # told as absent, and it is not
    (4.0, 1.0, 0, False),  # told as there, and it is not
]


@pytest.mark.parametrize(("middle", "half", "true", "told"), BY_HAND)
def test_a_small_cell_is_told_where_its_interval_lies_inside(middle, half, true, told):
    found = restored([middle, 50.0], [half, 1.0])
    assert told_cells(found, torch.tensor([true, 50])).tolist() == [told, False]


def test_the_floor_is_the_smallest_count_that_may_be_told():
    found, true = restored([5.0], [0.5]), torch.tensor([5])
    assert [bool(told_cells(found, true, floor)) for floor in (5, 6)] == [False, True]


def test_a_proof_tells_all_that_is_small():
    counts = torch.tensor([0, 1, 9, 10])
    found = Restoration(counts > 0, counts, certified=True)
    assert told_cells(found, counts).tolist() == [True, True, True, False]


def test_sure_samples_bound_a_count_from_both_sides():
    """Of six samples five are sure: the last may be of any class."""
    counts = torch.tensor([3, 2, 1])
    found = Restoration(counts > 0, counts, certain=torch.tensor([3, 2, 0]))
    bounds = count_bounds(found)
    assert bounds.low.tolist() == [3, 2, 0]
    assert bounds.high.tolist() == [4, 3, 1]
    assert told_cells(found, counts).tolist() == [True, True, False]


def test_neither_intervals_nor_a_proof_tell_nothing():
    counts = torch.tensor([1, 2])
    assert count_bounds(Restoration(counts > 0, counts)) is None
    assert count_bounds(Restoration(counts > 0, proportions=counts / 3)) is None
    assert told_cells(Restoration(counts > 0, counts), counts) is None
