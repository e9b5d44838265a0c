"""Batches for exact restoration, and a clock that no machine is too slow for."""

import torch

from labelleak.attacks import restore
from labelleak.attacks.exact.clock import Clock
from synthetic import Batch, rng

FLOAT = torch.float64


def trained(classes, features, size, seed=0, *, relu=False, scale=2.0):
    """A head as after training, whose embeddings differ; dense, or with zeros as after a ReLU."""
    generator = rng(seed)
    weight = scale * torch.randn(classes, features, generator=generator, dtype=FLOAT)
    embeddings = torch.randn(size, features, generator=generator, dtype=FLOAT)
    embeddings = embeddings.relu() if relu else embeddings + 0.5
    labels = torch.randint(classes, (size,), generator=generator)
    weight = (weight / features**0.5).float().double()
    bias = 0.1 * torch.randn(classes, generator=generator, dtype=FLOAT).float().double()
    return Batch(weight, bias, embeddings.float().double(), labels)


DENSE = trained(30, 40, 8)
FEW_CLASSES = trained(10, 60, 8, relu=True)


def extended(made):
    """[e, 1] of every sample."""
    ones = made.embeddings.new_ones(len(made.labels), 1)
    return torch.cat([made.embeddings, ones], dim=1)


def frozen():
    """The time in seconds, that never passes."""
    return 0.0


def endless():
    return Clock(1.0, frozen)


def restored(seen, **hyper_parameters):
    """What exact restoration finds with all the time that it takes."""
    return restore(seen, "exact", now=frozen, **hyper_parameters)


def assert_all_found(found, made, tolerance=1e-6):
    assert torch.equal(found.counts, made.counts)
    assert torch.equal(found.certain, made.counts)
    assert found.invisible == 0
    distances = torch.cdist(found.embeddings, made.embeddings)
    same = found.embedding_labels[:, None] == made.labels
    nearest = torch.where(same, distances, torch.inf).amin(dim=0)
    assert (nearest < tolerance * made.embeddings.norm(dim=1)).all()
