"""Made-up samples: their counts, and that a nature decides what it says it decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from labelleak.attacks.virtual.made_up_classes import (
    MadeUpSamples,
    Nature,
    child_of,
    drawn_nature,
)
from synthetic import rng

MIDDLE = Nature(*[0.5] * 9)
COUNTS = torch.tensor([40, 0, 25, 35])


def draw(nature, shape=(1, 12, 12), seed=0, order=None):
    order = torch.arange(4) if order is None else order
    return MadeUpSamples(nature, shape, order)(COUNTS, 0, rng(seed))


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 8, 10), (20,), (5, 7)])
def test_there_are_as_many_of_each_class_as_asked_for(shape):
    inputs, labels = draw(MIDDLE, shape)
    assert inputs.shape == (100, *shape)
    assert torch.bincount(labels, minlength=4).tolist() == COUNTS.tolist()
    assert bool(torch.isfinite(inputs).all())


def test_the_same_seed_gives_the_same_samples():
    (one, _), (again, _), (other, _) = draw(MIDDLE), draw(MIDDLE), draw(MIDDLE, seed=1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_order_of_drawing_names_the_classes():
    """The first class drawn has the same samples, whatever its number is."""
    order = torch.tensor([2, 0, 3, 1])
    inputs, labels = draw(MIDDLE, order=order)
    renamed, counts = torch.empty_like(order), COUNTS[order]
    renamed[order] = torch.arange(4)
    plain, own = MadeUpSamples(MIDDLE, (1, 12, 12), torch.arange(4))(counts, 0, rng(0))
    assert torch.equal(inputs, plain)
    assert torch.equal(labels, order[own])


def between_and_within(nature):
    inputs, labels = draw(nature)
    flat = inputs.flatten(1)
    means = torch.stack([flat[labels == label].mean(dim=0) for label in (0, 2, 3)])
    within = torch.cat([flat[labels == label] - flat[labels == label].mean(0) for label in (0, 2)])
    return float((means - means.mean(dim=0)).square().mean() / within.square().mean())


def test_separable_classes_differ_more():
    low, high = (between_and_within(replace(MIDDLE, separability=value)) for value in (0.1, 0.9))
    assert high > 2.0 * low


def test_the_distribution_of_entries():
    positive, bounded, free = (draw(replace(MIDDLE, shape=value))[0] for value in (0.1, 0.3, 0.9))
    assert float(positive.min()) >= 0.0
    assert float(bounded.min()) < 0.0
    assert float(bounded.abs().max()) <= 1.4
    assert float(free.abs().max()) > float(bounded.abs().max())


def test_children_are_like_their_parent():
    source = np.random.default_rng(0)
    parent = drawn_nature(source)
    for _ in range(20):
        child = child_of(parent, source)
        assert abs(child.size - parent.size) <= 0.2
        assert 0.0 <= child.shape <= 1.0
