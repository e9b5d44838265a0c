"""Damped restoration, against LLBG and pooled between which it lies."""

from dataclasses import replace

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


def signs_of(batch):
    gradient = batch.gradient()
    return batch.observe(HeadGradient(gradient.weight.sign(), gradient.bias.sign()))


@pytest.mark.parametrize("offset", [0.0, 5.0], ids=["scattered", "all-alike"])
@pytest.mark.parametrize("absent", [0, 2], ids=["random", "two-absent"])
def test_counts_follow_from_signs_alone(absent, offset):
    """Not farther than the even batch of who sees nothing, and nearer than LLBG.

    LLBG reads the bias alone. Embeddings may be alike, as behind a sigmoid: whole rows then fall.
    """
    ours, theirs, even = [], [], []
    for seed in range(8):
        batch = untrained(10, 300, 40, seed, spread=0.5)
        batch.embeddings = batch.embeddings + offset
        batch.labels = torch.randint(10 - absent, (40,), generator=rng(seed))
        seen = signs_of(batch)
        for found, shares in ((restore(seen, "damped"), ours), (restore(seen, "llbg"), theirs)):
            shares.append(int(torch.minimum(found.counts, batch.counts).sum()) / 40)
        even.append(float(torch.minimum(torch.full((10,), 4.0), batch.counts.double()).sum()) / 40)
    assert sum(ours) > sum(even) - 0.2
    assert sum(ours) > sum(theirs)
    if not offset:
        assert sum(ours) > sum(even) + 0.2


def test_signs_of_two_classes_leave_an_even_batch():
    """Their rows mirror each other, and say which class has more, not how many."""
    seen = signs_of(untrained(2, 60, 32, spread=0.5))
    counts = restore(seen, "damped").counts
    assert int(counts.min()) >= 32 / 2 - 32**0.5


def test_features_that_fall_do_not_change_what_signs_tell():
    """As behind tanh: a feature times minus one is the same feature."""
    batch = untrained(6, 200, 30, spread=0.5)
    gradient, turned = batch.gradient(), torch.ones(200).double()
    turned[::3] = -1.0
    plain = restore(signs_of(batch), "damped")
    weight, bias = (gradient.weight * turned).sign(), gradient.bias.sign()
    found = restore(batch.observe(HeadGradient(weight, bias)), "damped")
    torch.testing.assert_close(found.raw, plain.raw)


def test_two_classes_and_one_feature_are_no_signs():
    """Their entries have one size each in any gradient, which tells more than signs."""
    seen = untrained(2, 1, 24, spread=0.5).observe()
    assert torch.equal(restore(seen, "damped").counts, restore(doubled(seen), "damped").counts)


def doubled(seen):
    """The same with its feature split in two halves of different weight."""
    gradient, head = seen.gradient, seen.head
    parts = torch.tensor([[0.6, 0.8]]).double()
    weight, own = gradient.weight @ parts, head.weight @ parts
    return replace(
        seen, gradient=HeadGradient(weight, gradient.bias), head=replace(head, weight=own)
    )
