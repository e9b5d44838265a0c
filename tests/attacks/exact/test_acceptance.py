"""Which embeddings and labels are samples of the batch."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from exact_batches import DENSE, FLOAT, extended, restored, trained

from labelleak.attacks import restore
from labelleak.attacks.exact.acceptance import accepted, beyond_luck, excess, likely_labels
from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.samples import Samples
from synthetic import rng

FACTORS = factorize(DENSE.observe(), 8, rng())
POINTS = extended(DENSE) @ FACTORS.right


@pytest.mark.parametrize("entries", [2**20, 1])
def test_samples_are_accepted_whatever_fits_into_memory(entries):
    found = accepted(FACTORS, POINTS, DENSE.labels, 8.0, entries=entries)
    assert torch.equal(found.labels.bincount(minlength=30), DENSE.counts)
    assert torch.allclose(found.inverse_weights, torch.full((8,), 8.0, dtype=FLOAT))


def test_samples_that_fit_alike_keep_their_order():
    """How far below its errors each of them fits is chance."""
    for order in (torch.arange(8), torch.arange(8).flip(0), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])):
        found = accepted(FACTORS, POINTS[order], DENSE.labels[order], 8.0)
        assert torch.equal(found.labels, DENSE.labels[order])
        assert torch.allclose(found.inputs, extended(DENSE)[order])


def test_of_the_same_sample_the_better_one_stays():
    slip = 1e-7 * FACTORS.directions.sum(dim=1)
    points = torch.cat([POINTS + slip, POINTS])
    found = accepted(FACTORS, points, DENSE.labels.repeat(2), 8.0)
    assert len(found) == 8
    assert torch.allclose(found.inputs, extended(DENSE), rtol=0.0, atol=1e-9)


def test_mixtures_and_other_labels_are_not_accepted():
    mixed = 0.5 * (POINTS + POINTS.roll(1, dims=0))
    assert (excess(FACTORS, mixed, DENSE.labels, 8.0)[0] > 1.0).all()
    assert (excess(FACTORS, POINTS, (DENSE.labels + 1) % 30, 8.0)[0] > 1.0).all()
    # Nor is a sample of a batch of another size.
    assert (excess(FACTORS, POINTS, DENSE.labels, 11.0)[0] > 1.0).all()


def test_the_true_label_is_a_likely_one():
    which, labels = likely_labels(FACTORS, POINTS)
    assert torch.equal(which, torch.arange(8).repeat_interleave(12))
    assert (labels.view(8, 12) == DENSE.labels[:, None]).any(dim=1).all()


def test_a_label_whose_error_is_far_from_the_column_space_is_not_worth_a_trial():
    which, labels = likely_labels(FACTORS, POINTS, within=1e-3)
    predicted = FACTORS.logits(POINTS).argmax(dim=1)
    expected = [sorted({int(a), int(b)}) for a, b in zip(DENSE.labels, predicted, strict=True)]
    assert [labels[which == k].tolist() for k in range(8)] == expected


@pytest.mark.parametrize("seed", range(3))
def test_where_every_label_fits_the_column_space_all_are_tried(seed):
    """As many samples as classes less one: which labels fit best is rounding noise."""
    made = trained(14, 120, 13, seed, relu=True)
    found = restored(made.observe())
    assert torch.equal(found.counts, made.counts)
    assert torch.equal(found.certain, made.counts)


def confident(bias, seed):
    """A batch of two labels whose samples are nearly all predicted as another class."""
    made = trained(20, 40, 8, seed, scale=40.0)
    labels = torch.where(torch.arange(8) % 3 == 0, seed, seed + 4)
    made = replace(made, labels=labels)
    seen = made.observe(batch_size=8)
    return made, seen if bias else replace(seen, gradient=replace(seen.gradient, bias=None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", [2, 7, 9])
def test_confident_wrong_predictions_do_not_make_another_label_certain(bias, seed):
    """Their q are differences of unit vectors, so those of one label give those of another."""
    made, seen = confident(bias, seed)
    ticks = count()
    found = restore(seen, "exact", time_limit=1.0, now=lambda: next(ticks) / 100)
    assert (found.certain <= made.counts).all()
    factors = factorize(seen, 8, rng())
    assert not beyond_luck(factors, samples_of(made, factors)).any()


def test_samples_whose_label_no_other_can_take_are_beyond_luck():
    assert beyond_luck(FACTORS, samples_of(DENSE, FACTORS)).all()


def samples_of(made, factors):
    inputs = extended(made)[:, : factors.right.shape[0]]
    return Samples(inputs, made.labels, torch.full((len(made.labels),), 8.0, dtype=FLOAT))


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_samples_are_found_whatever_the_scale_of_the_class_weights(weight, seed):
    """The mean divides by the weights of the batch, whose sum no one has told."""
    made = trained(6, 40, 3, seed, relu=True)
    weights = weight * torch.linspace(0.5, 2.0, 6, dtype=FLOAT)
    found = restored(made.observe(class_weights=weights, batch_size=3))
    assert torch.equal(found.embedding_labels.bincount(minlength=6), made.counts)
