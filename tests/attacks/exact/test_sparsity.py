"""Sparse directions of a low-rank factor."""

import torch
from exact_batches import FLOAT, trained

from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.sparsity import sparse_directions
from synthetic import rng


def test_sparse_directions_are_the_samples():
    made = trained(30, 100, 6, relu=True)
    factors = factorize(made.observe(), 6, rng())
    found = sparse_directions(
        factors.right[:-1], factors.noise / factors.values, torch.eye(6, dtype=FLOAT), rng()
    )
    images = torch.nn.functional.normalize(found @ factors.right[:-1].T, dim=1)
    truth = torch.nn.functional.normalize(made.embeddings, dim=1)
    hits = (images @ truth.T).abs() > 1 - 1e-9
    assert hits.any(dim=0).all()
