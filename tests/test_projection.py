import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from labelleak import projection
from labelleak.projection import project_to_counts, project_to_simplex
from synthetic import rng

# Quarters are exact in floating point, so that costs can be compared exactly; they make many ties.
QUARTERS = st.integers(-40, 80).map(lambda quarters: quarters / 4)


REALS = st.floats(-1e300, 1e300)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def cost(values, counts):
    return sum((Fraction(v) - n) ** 2 for v, n in zip(values, counts, strict=True))


def compositions(total, parts):
    """All non-negative integer vectors with the given sum."""
    for bars in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = (-1, *bars, total + parts - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(edges))


@given(st.lists(QUARTERS, min_size=1, max_size=4), st.integers(0, 7))
def test_counts_are_the_nearest_of_all_compositions(values, total):
    counts = project_to_counts(vector(values), total).tolist()
    best = min(cost(values, other) for other in compositions(total, len(values)))
    assert cost(values, counts) == best


@given(st.lists(st.floats(-3, 8), min_size=1, max_size=4), st.integers(0, 7))
def test_counts_are_as_near_as_any_composition_for_any_floats(values, total):
    counts = project_to_counts(vector(values), total).tolist()
    best = min(cost(values, other) for other in compositions(total, len(values)))
    assert cost(values, counts) <= best + Fraction(1e-12)


def by_milp(values, total):
    """As an integer program: which unit increments to take, each at its cost."""
    units = np.arange(1, total + 1)
    costs = (2 * units - 1)[None, :] - 2 * values[:, None]
    solved = milp(
        costs.ravel(),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.ones((1, costs.size)), total, total),
    )
    assert solved.success
    return np.rint(solved.x).reshape(costs.shape).sum(axis=1).astype(int)


@pytest.mark.parametrize("seed", range(25))
def test_counts_are_those_of_an_integer_program(seed):
    generator = np.random.default_rng(seed)
    classes, total = int(generator.integers(2, 40)), int(generator.integers(1, 40))
    values = generator.normal(total / classes, generator.uniform(0.1, 5), classes)
    counts = project_to_counts(torch.from_numpy(values), total)
    assert counts.tolist() == by_milp(values, total).tolist()


@given(st.lists(REALS, min_size=1, max_size=30), st.integers(0, 1000))
@example([1e300, -1e300, 1e300], 3)
@example([-1e300] * 3, 2)
@example([1.7e308, -1.7e308], 5)
@example([1e-300, 0.0], 1)
@example([0.1] * 10, 1)
def test_counts_are_non_negative_integers_with_the_sum(values, total):
    counts = project_to_counts(vector(values), total)
    assert counts.dtype == torch.int64
    assert counts.shape == (len(values),)
    assert int(counts.min()) >= 0
    assert int(counts.sum()) == total


@given(st.lists(st.floats(0, 2.0**53), min_size=1, max_size=30), st.integers(1, 2**53 - 1))
def test_the_sum_is_right_up_to_the_largest_totals(values, total):
    counts = project_to_counts(vector(values), total)
    assert int(counts.sum()) == total
    assert int(counts.min()) >= 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_counts_that_have_the_sum_are_kept(counts):
    assert project_to_counts(vector(counts), sum(counts)).tolist() == counts


@given(st.lists(QUARTERS, min_size=1, max_size=12), st.integers(0, 30), st.integers(-4000, 4000))
def test_a_constant_changes_nothing(values, total, quarters):
    shifted = vector(values) + quarters / 4
    assert torch.equal(project_to_counts(shifted, total), project_to_counts(vector(values), total))


@given(st.lists(st.floats(-5, 20), min_size=1, max_size=12), st.integers(0, 40), st.randoms())
def test_the_order_of_the_classes_decides_ties_only(values, total, random):
    order = random.sample(range(len(values)), len(values))
    counts = project_to_counts(vector(values), total)
    permuted = project_to_counts(vector(values)[order], total)
    # The order may decide ties, which cost the same.
    difference = cost(vector(values)[order].tolist(), permuted.tolist()) - cost(
        values, counts.tolist()
    )
    assert abs(difference) <= Fraction(1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_without_ties_counts_move_with_their_classes(seed):
    values = 5 * torch.randn(15, generator=rng(seed), dtype=torch.float64)
    order = torch.randperm(15, generator=rng(seed))
    assert torch.equal(project_to_counts(values[order], 20), project_to_counts(values, 20)[order])


@pytest.mark.parametrize(
    ("values", "total", "counts"),
    [
        ([0.5, 0.5], 1, [1, 0]),
        ([0.0, 0.0, 0.0], 2, [1, 1, 0]),
        ([7.0] * 5, 8, [2, 2, 2, 1, 1]),
        ([-3.0, 2.5, 2.5], 5, [0, 3, 2]),
        ([-1e300] * 3, 2, [1, 1, 0]),
        ([1e300, -1e300, 1e300], 3, [2, 0, 1]),
    ],
)
def test_ties_go_to_the_lowest_class(values, total, counts):
    assert project_to_counts(vector(values), total).tolist() == counts


@given(st.lists(QUARTERS, min_size=1, max_size=40), st.integers(0, 60), st.sampled_from([1, 3]))
def test_sieving_changes_nothing(values, total, few):
    plain = project_to_counts(vector(values), total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_FEW", few)
        assert torch.equal(project_to_counts(vector(values), total), plain)


def test_counts_of_single_precision_values():
    assert project_to_counts(torch.tensor([0.6, 1.4]), 2).tolist() == [1, 1]


def test_a_negative_sum_is_refused():
    with pytest.raises(ValueError, match="counts cannot sum to -1"):
        project_to_counts(vector([1.0]), -1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        project_to_counts(vector([1.0, value]), 1)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 100))
def test_the_simplex_projection_meets_the_conditions_of_the_nearest_point(values, total):
    nearest = project_to_simplex(vector(values), total)
    assert nearest.dtype == torch.float64
    assert float(nearest.min()) >= 0
    assert float(nearest.sum()) == pytest.approx(total, rel=1e-12)
    # One shift for all that stay positive; what ends at zero would not stay above it.
    shift = vector(values) - nearest
    kept = nearest > 1e-9
    assert float(shift[kept].max() - shift[kept].min()) <= 1e-9
    assert bool((vector(values)[~kept] <= shift[kept].max() + 1e-9).all())


def test_the_simplex_projection_of_huge_values_is_exact():
    assert project_to_simplex(vector([1e300, -1e300, 1e300]), 1.0).tolist() == [0.5, 0.0, 0.5]
