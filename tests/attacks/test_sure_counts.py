"""How probable counts are, against integration and against draws that mean nothing."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelleak.attacks.certainty import (
    TRUSTED,
    agrees,
    by_chance,
    contradicts,
    distance_from_feasible,
    probability_right,
)
from synthetic import rng


@pytest.mark.parametrize("free", [2, 3, 6, 12])
def test_fractions_without_meaning_are_seldom_taken_for_whole(free):
    """Of a million points spread evenly, one in a thousand is that near to whole numbers."""
    draws = torch.rand(1_000_000, free, generator=rng()).sub_(0.5)
    bound = by_chance(free) * math.sqrt(free + 1)
    share = float((draws.norm(dim=1) < bound).double().mean())
    # Cubes hold no balls of a radius above a half, so that many numbers are less probable.
    assert share < 1.2e-3
    if free <= 3:
        assert share > 0.8e-3


def test_one_number_is_always_near_some_whole_one_on_a_path():
    assert by_chance(1, length=10.0) == 0.0
    assert by_chance(0) == 0.0
    assert by_chance(999) == TRUSTED


def test_longer_paths_ask_for_smaller_distances():
    bounds = [by_chance(9, length) for length in (1.0, 10.0, 100.0)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] > 0


def test_the_probability_is_that_of_all_whole_numbers_together():
    """Of two counts that do not depend on each other, all whole numbers near them are weighed."""
    raw, errors = torch.tensor([3.2, 6.8]).double(), torch.tensor([0.3, 0.4]).double()
    weights = {
        pair: math.exp(
            -0.5
            * sum(
                ((float(r) - n) / float(e)) ** 2 for r, n, e in zip(raw, pair, errors, strict=True)
            )
        )
        for pair in itertools.product(range(12), repeat=2)
    }
    by_hand = weights[3, 7] / sum(weights.values())
    assert probability_right(raw, errors, torch.tensor([3, 7])) == pytest.approx(by_hand, rel=1e-3)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 20), error=st.floats(0.01, 0.6))
def test_larger_errors_make_counts_less_probable(seed, classes, error):
    counts = torch.randint(0, 9, (classes,), generator=rng(seed))
    raw, errors = counts.double(), torch.full((classes,), error).double()
    one, other = (probability_right(raw, errors * size, counts) for size in (1.0, 1.5))
    assert 0.0 < other <= one <= 1.0
    assert distance_from_feasible(raw, int(counts.sum())) == 0.0
    assert agrees(distance_from_feasible(raw, int(counts.sum())), errors)


@pytest.mark.parametrize("classes", [4, 10, 100])
def test_estimates_seldom_contradict_the_counts_that_they_are_of(classes):
    counts = torch.full((classes,), 7)
    noise = 2.0 * torch.randn(4000, classes, generator=rng(1)).double()
    told = [contradicts(counts + one, torch.full((classes,), 2.0), counts) for one in noise]
    assert sum(told) <= 8


def test_one_count_far_away_contradicts_and_so_do_many_that_are_less_so():
    counts, errors = torch.full((100,), 7), torch.full((100,), 2.0).double()
    one = counts.double()
    one[3] += 0.5 + 5.0 * 2.0
    assert contradicts(one, errors, counts)
    signs = torch.tensor([1.0, -1.0]).double().repeat(50)
    assert contradicts(counts + signs * (0.5 + 1.4 * 2.0), errors, counts)
    assert not contradicts(counts + signs * (0.5 + 1.0 * 2.0), errors, counts)
    # Counts that were rounded may be half a sample off.
    assert not contradicts(counts + 0.5 * signs, torch.full((100,), 1e-6).double(), counts)
