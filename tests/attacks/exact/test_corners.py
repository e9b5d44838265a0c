"""Samples as corners of the polytope of nonnegative vectors."""

from itertools import count

import pytest
import torch
from exact_batches import FLOAT, assert_all_found, extended, restored, trained

from labelleak.attacks import restore
from labelleak.attacks.exact import search
from labelleak.attacks.exact.corners import corner_direction, corner_seconds
from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.sparsity import sparse_directions
from synthetic import rng

MANY = trained(100, 1000, 30, relu=True)
FACTORS = factorize(MANY.observe(), 30, rng())


def corner(factors, space, seed=0):
    errors = factors.noise / factors.values
    features = factors.right[:-1]
    return corner_direction(features, factors.right[-1], errors, space, rng(seed))


def nearest(factors, directions, made):
    """The sample that a direction is of, and the distance beside its length."""
    assert len(directions) == 1
    vector = directions @ factors.right.T
    vector = vector / vector[:, -1:]
    distances = torch.cdist(vector, extended(made))[0] / extended(made).norm(dim=1)
    return int(distances.argmin()), float(distances.min())


def test_a_corner_is_a_sample_where_no_guess_of_zeros_is_right():
    everything = torch.eye(30, dtype=FLOAT)
    errors = FACTORS.noise / FACTORS.values
    assert not len(sparse_directions(FACTORS.right[:-1], errors, everything, rng()))
    found = [nearest(FACTORS, corner(FACTORS, everything, seed), MANY) for seed in range(6)]
    assert all(distance < 1e-6 for _, distance in found)
    assert len({which for which, _ in found}) > 1


def test_of_the_samples_that_are_left_another_one_is_found():
    logits = extended(MANY) @ FACTORS.layer.T
    q = torch.softmax(logits, dim=1) - torch.nn.functional.one_hot(MANY.labels, 100)
    known = torch.arange(15)
    which, distance = nearest(FACTORS, corner(FACTORS, FACTORS.space_left(q[known])), MANY)
    assert which >= 15
    assert distance < 1e-6


@pytest.mark.parametrize("positive", [True, False])
def test_vectors_without_zeros_have_no_corner_that_is_one_of_them(positive):
    """Whether they are all positive, as behind an average pooling, or of both signs."""
    made = trained(100, 400, 40)
    if positive:
        made.embeddings = made.embeddings.exp()
    factors = factorize(made.observe(), 40, rng())
    assert not len(corner(factors, torch.eye(40, dtype=FLOAT)))


def test_all_of_many_samples_are_found_and_certified():
    found = restored(MANY.observe())
    assert_all_found(found, MANY)
    assert found.certified


def test_the_cost_grows_with_the_square_of_the_unknowns():
    assert corner_seconds(2000, 48) == pytest.approx(4 * corner_seconds(2000, 24))
    assert corner_seconds(4000, 24) == pytest.approx(2 * corner_seconds(2000, 24))


@pytest.mark.parametrize(("seconds", "looks"), [(2.0, False), (3.0, True)])
def test_a_search_of_few_seconds_does_not_look_for_corners(seconds, looks, monkeypatch):
    asked, ticks = [], count()
    monkeypatch.setattr(search, "corner_direction", lambda *given: asked.append(1) or given[0][:0])
    restore(MANY.observe(), "exact", time_limit=seconds, now=lambda: next(ticks) / 20)
    assert bool(asked) == looks


def test_where_one_sample_is_zero_in_all_entries_there_is_no_other_corner():
    made = trained(100, 1000, 30, relu=True)
    made.embeddings[7] = 0.0
    factors = factorize(made.observe(), 30, rng())
    assert not len(corner(factors, torch.eye(30, dtype=FLOAT)))
