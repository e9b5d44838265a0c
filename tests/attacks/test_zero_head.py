"""Certificates of a head of zero weight: of a gradient as it was computed, and at its own scale."""

from dataclasses import replace

import pytest
import torch

from labelleak import defenses
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


@pytest.mark.parametrize("attack", ["pooled", "auto"])
def test_nothing_is_proven_of_a_gradient_that_shows_a_defense(attack):
    _, seen = first_step([0, 0, 1, 4], 6)
    treated = defenses.defend(seen, lambda tensor: defenses.sparsify(tensor, 0.5))
    assert not restore(treated, attack).certified


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
