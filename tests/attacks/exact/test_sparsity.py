"""Sparse directions of a low-rank factor."""

import torch
from exact_batches import FLOAT, trained

from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.sparsity import have_no_other, sparse_directions
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


def test_zeros_that_two_samples_share_single_out_neither():
    made = trained(30, 100, 6, relu=True)
    made.embeddings[0, 40:] = made.embeddings[1, 40:] = 0.0
    factors = factorize(made.observe(), 6, rng())
    rows, errors = factors.right[:-1], factors.noise / factors.values
    own = made.embeddings[2:3] == 0.0
    shared = (made.embeddings[:1] == 0.0) & (made.embeddings[1:2] == 0.0)
    assert have_no_other(rows, errors, torch.cat([own, shared])).tolist() == [True, False]
