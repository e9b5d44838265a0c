"""Sparse directions of a low-rank factor."""

import pytest
import torch
from exact_batches import FLOAT, trained

from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.sparsity import have_no_other, sparse_directions
from synthetic import rng


def found_and_true(size):
    """Absolute cosines of the directions of one round and the samples of a batch."""
    made = trained(30, 100, size, relu=True)
    factors = factorize(made.observe(), size, rng())
    found = sparse_directions(
        factors.right[:-1], factors.noise / factors.values, torch.eye(size, dtype=FLOAT), rng()
    )
    images = torch.nn.functional.normalize(found @ factors.right[:-1].T, dim=1)
    return (images @ torch.nn.functional.normalize(made.embeddings, dim=1).T).abs()


@pytest.mark.parametrize("size", [6, 8])
def test_sparse_directions_are_the_samples(size):
    assert (found_and_true(size) > 1 - 1e-9).any(dim=0).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_of_few_samples_nothing_but_samples_is_found(size):
    hits = found_and_true(size) > 1 - 1e-9
    assert len(hits)
    assert hits.any(dim=1).all()


def test_zeros_that_two_samples_share_single_out_neither():
    made = trained(30, 100, 6, relu=True)
    made.embeddings[0, 40:] = made.embeddings[1, 40:] = 0.0
    factors = factorize(made.observe(), 6, rng())
    rows, errors = factors.right[:-1], factors.noise / factors.values
    own = made.embeddings[2:3] == 0.0
    shared = (made.embeddings[:1] == 0.0) & (made.embeddings[1:2] == 0.0)
    assert have_no_other(rows, errors, torch.cat([own, shared])).tolist() == [True, False]
