"""Virtual batches: what is drawn, the regression, and answers of networks that make mistakes."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from labelleak import Auxiliary, Flag, restore
from labelleak.attacks.sample_vectors import SampleVectors, sample_vectors
from labelleak.attacks.virtual import batches
from labelleak.attacks.virtual.batches import _cuts, _drawn, _fit, _made
from labelleak.errors import MissingKnowledge
from labelleak.metrics import score
from synthetic import Batch, losses, rng

CLASSES, FEATURES = 5, 8


def learned(counts, seed, *, each=60, sure=3.0, spread=0.7):
    """A batch of a network that is sure of most samples, and auxiliary ones of the same kind."""
    generator = rng(seed)
    centers = torch.randn(CLASSES, FEATURES, generator=generator).double()
    weight = sure * (centers - centers.mean(dim=0))

    def draw(labels):
        noise = torch.randn(len(labels), FEATURES, generator=generator).double()
        return centers[labels] + spread * noise

    labels = torch.arange(CLASSES).repeat_interleave(torch.as_tensor(counts))
    known = torch.arange(CLASSES).repeat(each)
    batch = Batch(weight, torch.zeros(CLASSES).double(), draw(labels), labels)
    return batch, Auxiliary(draw(known), known)


def observed(batch, auxiliary, **knowledge):
    return batch.observe(model=batch.model(), auxiliary=auxiliary, **knowledge)


def drawn(seed, concentration):
    """Counts of 40 samples."""
    source = np.random.default_rng(seed)
    return torch.from_numpy(_drawn(source, (1, CLASSES), 40, concentration)[0])


def test_a_cut_is_a_sum_of_so_many_vectors():
    """Of unit vectors, sums count how often each was picked."""
    numbers = torch.tensor([0, 1, 7, 300, 2])
    sums = _cuts(np.random.default_rng(0), torch.eye(6).double(), numbers)
    torch.testing.assert_close(sums.sum(dim=1), numbers.double())
    assert bool(((sums >= 0) & (sums == sums.round())).all())
    # 300 of 6 are 50 of each, give or take 6.5.
    assert bool(((sums[3] - 50).abs() < 35).all())


@pytest.mark.parametrize(
    ("samples", "longest", "ring"),
    [(50, 8, 3200), (500, 8, 4000), (5000, 8, 5000), (50, 2000, 8000)],
)
def test_a_ring_is_no_longer_than_it_need_be(samples, longest, ring):
    class Source(np.random.Generator):
        def permutation(self, order):
            assert len(order) == ring
            return super().permutation(order)

    source = Source(np.random.PCG64(0))
    sums = _cuts(source, torch.ones(samples, 1).double(), torch.tensor([longest]))
    assert sums.tolist() == [[longest]]


def test_batches_have_the_mean_of_their_samples():
    batch, auxiliary = learned([8] * CLASSES, 0)
    known = sample_vectors(observed(batch, auxiliary), 0)
    made = _made(known, torch.arange(CLASSES), 40, 0)
    assert made.shares.sum(dim=1) == pytest.approx(1.0)
    # The mean gradient of all batches of a pool, by that pool's means of each class.
    for pool in (0, 1):
        own = made.pools == pool
        means = torch.stack(
            [known.vectors[known.labels == label][pool::2].mean(dim=0) for label in range(CLASSES)]
        )
        left = (made.means[own] - made.shares[own] @ means).mean(dim=0)
        assert bool((left.abs() < 0.05 * made.means[own].std(dim=0)).all())


def test_a_mean_with_class_weights_is_divided_by_their_sum():
    vectors = torch.eye(CLASSES).double().repeat(2, 1)[:, :-1]
    labels = torch.arange(CLASSES).repeat(2)
    weights = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0]).double()
    made = _made(
        SampleVectors(vectors, labels, torch.zeros(CLASSES - 1), weights),
        torch.arange(CLASSES),
        12,
        0,
    )
    expected = made.shares / (made.shares @ weights)[:, None]
    torch.testing.assert_close(made.means, expected[:, :-1])


def test_the_regression_is_a_ridge_of_standardized_entries():
    generator = rng(3)
    means = torch.randn(50, 4, generator=generator).double() * torch.tensor([1.0, 10.0, 0.1, 3.0])
    shares = torch.rand(50, CLASSES, generator=generator).double()
    weights = torch.rand(50, generator=generator).double()
    made = batches._Batches(shares, means, torch.zeros(50, dtype=torch.int64))
    fit = _fit(made, weights, 0.1)
    part = weights / weights.sum()
    middle = part @ means
    units = (part @ (means - middle).square()).sqrt()
    other = Ridge(alpha=0.1).fit((means - middle) / units, shares, sample_weight=part)
    asked = 0.5 * (means[:3] + means[3:6])
    expected = torch.from_numpy(other.predict((asked - middle) / units))
    torch.testing.assert_close(fit(asked), expected)
    # Entries count no further than those of the batches that have any weight.
    fit = _fit(made, weights * (torch.arange(50) < 25), 0.1)
    most = means[:25].amax(dim=0)
    torch.testing.assert_close(fit(most[None] + 9.0), fit(most[None]))


@pytest.mark.parametrize(("concentration", "gain"), [(math.inf, -0.02), (0.5, 0.07)])
def test_counts_are_nearer_than_a_guess_and_errors_hold(concentration, gain):
    ours, even, inside = [], [], []
    for seed in range(12):
        counts = drawn(seed, concentration)
        batch, auxiliary = learned(counts, seed)
        found = restore(observed(batch, auxiliary), "virtual-batches")
        ours.append(score(found, counts).accuracy)
        even.append(float(counts.clamp(max=8).sum()) / 40)
        off = (found.raw - counts).abs()
        inside.append((off <= 1.96 * found.standard_errors).double().mean())
    # 40 seeds give .88 and .70 beside .88 and .57, and .99 and .94 of the intervals.
    assert np.mean(ours) > np.mean(even) + gain
    assert np.mean(inside) >= 0.88


def test_entries_that_hardly_any_auxiliary_sample_has_tell_little():
    """Of few samples a regression takes a mistake that none of them makes for millions."""
    ours, even = [], []
    for seed in range(6):
        counts = drawn(seed, math.inf)
        batch, auxiliary = learned(counts, seed, each=10, sure=10.0)
        found = restore(observed(batch, auxiliary), "virtual-batches")
        assert float(found.standard_errors.max()) <= 40
        ours.append(score(found, counts).accuracy)
        even.append(float(counts.clamp(max=8).sum()) / 40)
    assert np.mean(ours) > np.mean(even) - 0.15


def test_many_batches_that_are_the_same_are_all_near():
    """Of one sample of five classes, a fifth of the batches has the same gradient."""
    batch, auxiliary = learned([0, 1, 1, 0, 0], 1, spread=0.0)
    found = restore(observed(batch, auxiliary, batch_size=1), "virtual-batches")
    # The gradient is that of half a sample of each.
    torch.testing.assert_close(found.raw[1:3], torch.full((2,), 0.5).double(), atol=0.1, rtol=0.0)
    assert Flag.COUNTS_NOT_SURE in found.flags


def test_auto_takes_them_and_does_not_call_them_sure():
    counts = drawn(1, 0.5)
    batch, auxiliary = learned(counts, 1)
    seen = observed(batch, auxiliary)
    found, own = restore(seen), restore(seen, "virtual-batches")
    assert found.attack == "virtual-batches"
    assert torch.equal(found.counts, own.counts)
    assert Flag.COUNTS_NOT_SURE in found.flags


@pytest.mark.parametrize("loss", losses(CLASSES), ids=str)
def test_the_loss_is_taken_into_account(loss):
    """Smoothed labels show even where the network is sure."""
    ours, even = [], []
    for seed in range(4):
        counts = drawn(seed, 0.5)
        batch, auxiliary = learned(counts, seed)
        seen = batch.observe_under(loss, model=batch.model(), auxiliary=auxiliary)
        ours.append(score(restore(seen, "virtual-batches"), counts).accuracy)
        even.append(float(counts.clamp(max=8).sum()) / 40)
    assert np.mean(ours) > np.mean(even) + (0.12 if loss["label_smoothing"] else 0.05)


def test_what_cannot_be_told_is_refused():
    batch, auxiliary = learned([8] * CLASSES, 0)
    with pytest.raises(MissingKnowledge, match="one local step"):
        restore(observed(batch, auxiliary, local_steps=2), "virtual-batches")
    once = Auxiliary(auxiliary.inputs[:CLASSES], auxiliary.labels[:CLASSES])
    with pytest.raises(MissingKnowledge, match="two auxiliary samples"):
        restore(observed(batch, once), "virtual-batches")
    with pytest.raises(MissingKnowledge, match="too long for 5 classes and 1000000 samples"):
        restore(observed(batch, auxiliary, batch_size=10**6), "virtual-batches")
