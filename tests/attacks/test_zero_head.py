"""Certificates of a head of zero weight: of a gradient as it was computed, and at its own scale."""

from dataclasses import replace

import pytest
import torch

from labelleak import Loss, capture
from labelleak.attacks import restore
from labelleak.restoration import Flag
from synthetic import Batch, rng

DOUBLE = torch.float64


def first_step(labels, classes):
    """A batch of a head of zeros, and what a server sees of its step."""
    embeddings = torch.randn(len(labels), 16, generator=rng(), dtype=DOUBLE)
    head = torch.zeros(classes, 16, dtype=DOUBLE), torch.zeros(classes, dtype=DOUBLE)
    made = Batch(*head, embeddings, torch.tensor(labels))
    return made, made.observe(batch_size=len(labels))


def test_counts_are_proven():
    made, seen = first_step([0, 0, 1, 4], 6)
    found = restore(seen)
    assert found.certified
    assert torch.equal(found.counts, made.counts)


@pytest.mark.parametrize(("classes", "size"), [(40, 48), (64, 64), (1000, 256), (1000, 1024)])
@pytest.mark.parametrize("pixels", [False, True])
def test_counts_are_proven_whatever_the_numbers(classes, size, pixels):
    """Bias gradients on a grid by themselves, many rows, and inputs that are on a grid."""
    labels = torch.randint(classes, (size,), generator=rng(1))
    inputs = torch.randn(size, 64, generator=rng(2), dtype=DOUBLE)
    inputs = (128 + 40 * inputs).round().clamp(0, 255) / 255 if pixels else inputs
    made = Batch(
        torch.zeros(classes, 64, dtype=DOUBLE), torch.zeros(classes, dtype=DOUBLE), inputs, labels
    )
    found = restore(in_single_precision(made.observe(batch_size=size)))
    assert found.certified
    assert torch.equal(found.counts, made.counts)


def in_single_precision(seen):
    own = seen.gradient
    return replace(seen, gradient=replace(own, weight=own.weight.float(), bias=own.bias.float()))


def test_a_bias_gradient_of_other_classes_proves_nothing():
    _, seen = first_step([0, 0, 1, 1, 1], 30)
    own = seen.gradient
    found = restore(replace(seen, gradient=replace(own, bias=own.bias.roll(1))))
    assert not found.certified


@pytest.mark.parametrize(("labels", "classes", "factor"), [([1] * 9, 6, 3), ([0] * 6, 3, 2)])
def test_counts_that_are_whole_at_another_scale_are_no_proof(labels, classes, factor):
    """Nine of one class, a third of whose gradient is that of one each and four of the first."""
    made, seen = first_step(labels, classes)
    own = seen.gradient
    smaller = replace(own, weight=own.weight / factor, bias=own.bias / factor)
    found = restore(replace(seen, gradient=smaller))
    assert not torch.equal(found.counts, made.counts)
    assert not found.certified
    assert Flag.COUNTS_NOT_SURE in found.flags


def labels_of_a_head_of_zeros(targets, weights=None):
    """What a server sees of a step on labels of which a sample has several."""
    embeddings = torch.randn(len(targets), 16, generator=rng(), dtype=DOUBLE)
    head = torch.nn.Linear(16, targets.shape[1]).double()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    loss = Loss("bce", positive_weights=weights)
    return capture(head, embeddings, targets, loss=loss), targets.sum(dim=0).long()


@pytest.mark.parametrize("weights", [None, torch.linspace(0.5, 2.0, 5)])
def test_labels_are_proven(weights):
    targets = torch.zeros(9, 5, dtype=DOUBLE)
    targets[:3, 1] = targets[2:8, 2] = 1.0
    # Always there together, and never.
    targets[:4, 3:] = 1.0
    for places in ([0, 1, 2, 3, 4], [1, 2], [0, 1, 2]):
        own = None if weights is None else weights[places]
        seen, true = labels_of_a_head_of_zeros(targets[:, places], own)
        found = restore(seen)
        assert found.certified
        assert torch.equal(found.counts, true)


def test_labels_that_are_whole_at_another_scale_are_no_proof():
    targets = torch.zeros(12, 5, dtype=DOUBLE)
    targets[:3, 1] = targets[2:8, 2] = 1.0
    seen, true = labels_of_a_head_of_zeros(targets)
    own = seen.gradient
    for factor in (3.0, 2.0):
        smaller = replace(own, weight=own.weight / factor, bias=own.bias / factor)
        found = restore(replace(seen, gradient=smaller))
        assert not torch.equal(found.counts, true)
        assert not found.certified
        assert Flag.COUNTS_NOT_SURE in found.flags
