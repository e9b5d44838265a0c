import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelleak.guess import advantage_over, best_guess


def all_counts(total, classes):
    """Every vector of whole numbers with this sum."""
    for cuts in itertools.combinations(range(total + classes - 1), classes - 1):
        edges = (-1, *cuts, total + classes - 1)
        yield [after - before - 1 for before, after in itertools.pairwise(edges)]


def probability(counts, shares):
    ways = math.factorial(sum(counts))
    for count, share in zip(counts, shares, strict=True):
        ways = ways / math.factorial(count) * share**count
    return ways


def expected(guess, shares):
    """Mean of the accuracy over all batches that may be drawn."""
    total, classes = sum(guess), len(guess)
    return sum(
        probability(true, shares) * sum(map(min, guess, true)) / total
        for true in all_counts(total, classes)
    )


def whole(guess):
    """One of the guesses that the ties leave, as whole numbers."""
    counts = guess.counts.tolist()
    chosen = (guess.extra > 0).nonzero()[:, 0].tolist()[: guess.total - sum(counts)]
    return [count + (place in chosen) for place, count in enumerate(counts)]


@settings(max_examples=30)
@given(st.integers(1, 5), st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any))
def test_no_guess_is_better_by_enumeration(total, weights):
    guess = best_guess(total, len(weights), weights)
    assert guess.total == total
    shares = [weight / sum(weights) for weight in weights]
    best = max(expected(counts, shares) for counts in all_counts(total, len(weights)))
    assert expected(whole(guess), shares) == pytest.approx(best)


@pytest.mark.parametrize(("total", "classes"), [(5, 3), (3, 4), (6, 2), (4, 1)])
def test_without_a_prior_as_many_of_each_is_best(total, classes):
    guess = best_guess(total, classes)
    even = best_guess(total, classes, [1.0] * classes)
    assert torch.equal(guess.counts, even.counts)
    assert guess.extra.tolist() == pytest.approx(even.extra.tolist())
    best = max(expected(counts, [1 / classes] * classes) for counts in all_counts(total, classes))
    assert expected(whole(guess), [1 / classes] * classes) == pytest.approx(best)


def test_ties_count_on_average():
    guess, true = best_guess(4, 3), torch.tensor([4, 0, 0])
    options = [[2, 1, 1], [1, 2, 1], [1, 1, 2]]
    mean = sum(min(option[0], 4) / 4 for option in options) / 3
    assert guess.accuracy(true) == pytest.approx(mean)


@pytest.mark.parametrize("total", [10_000, 10**9])
def test_large_batches_are_guessed_by_their_shares(total):
    guess = best_guess(total, 3, [0.7, 0.2, 0.1])
    assert guess.total == total
    assert (guess.counts / total).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=1e-3)


def test_more_classes_than_samples():
    guess = best_guess(8, 1000)
    assert guess.accuracy(torch.tensor([8] + [0] * 999)) == pytest.approx(0.001)


@pytest.mark.parametrize("prior", [[1.0], [0.0, 0.0], [1.0, -1.0], [math.nan, 1.0]])
def test_what_is_no_prior_is_refused(prior):
    with pytest.raises(ValueError, match="prior"):
        best_guess(4, 2, prior)


def test_a_guess_that_leaves_nothing_open_leaves_no_advantage():
    assert advantage_over(1.0, 1.0) == (0.0, 0.0)
    assert advantage_over(0.5, 0.25).relative == -0.5
