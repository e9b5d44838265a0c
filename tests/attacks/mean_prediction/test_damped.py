"""Damped restoration, against LLBG and pooled between which it lies."""

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.mean_prediction.damped import moment, pull
from labelleak.observation import HeadGradient
from synthetic import one_embedding, rng, untrained


@pytest.mark.parametrize("seed", range(5))
def test_of_two_classes_it_is_pooled_where_chance_explains_the_logits(seed):
    seen = untrained(2, 30, 24, seed, spread=0.5).observe()
    torch.testing.assert_close(restore(seen, "damped").raw, restore(seen, "pooled").raw)


def test_it_lies_between_an_even_mean_prediction_and_that_of_pooled():
    batch = one_embedding(10, 30, 40)
    seen = batch.observe()
    even = 4.0 - 40 * batch.gradient().bias
    pooled, damped = restore(seen, "pooled").raw, restore(seen, "damped").raw
    way = (damped - even) / (pooled - even)
    apart = (pooled - even).abs() > 0.05
    assert bool(((way > 0.0) & (way < 0.5))[apart].all())
    assert float(way[apart].std()) < 1e-6


def test_a_class_that_is_proven_has_a_sample():
    bias = torch.tensor([-0.02, 0.01, 0.3, -0.29]).double()
    gradient = HeadGradient(torch.outer(bias, torch.ones(5).double()), bias)
    seen = untrained(4, 5, 8).observe(gradient)
    found = restore(seen, "damped")
    assert int(found.counts[0]) >= 1
    assert int(found.counts.sum()) == 8


@pytest.mark.parametrize("factor", [40.0, 4000.0])
def test_a_gradient_beyond_all_samples_is_brought_to_the_size_of_a_random_batch(factor):
    """Its factor is not confirmed, and the answer does not depend on it."""
    batch = untrained(10, 30, 64, spread=0.3)
    gradient = batch.gradient()
    found = [
        restore(batch.observe(HeadGradient(gradient.weight * f, gradient.bias * f)), "damped")
        for f in (factor, 2.0 * factor)
    ]
    torch.testing.assert_close(found[0].raw, found[1].raw)
    matched = int(torch.minimum(found[0].counts, batch.counts).sum())
    assert matched > 0.75 * 64


def test_the_pull_of_samples_is_what_they_take_off_their_classes():
    batch = one_embedding(5, 9, 20)
    seen, bias = batch.observe(), batch.gradient().bias
    assert pull(seen) == pytest.approx(sum(-float(entry) for entry in bias if entry < 0))
    assert 0.0 < pull(seen) < 1.0
    random = torch.randint(50, (4000,), generator=rng())
    even = one_embedding(50, 9, 4000)
    even.labels, even.weight, even.bias = random, 0.0 * even.weight, 0.0 * even.bias
    assert moment(even.observe()) == pytest.approx(1.0, abs=0.4)
