"""Distances of shares, by hand and against numpy's and scipy's definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from labelleak import Restoration, score
from labelleak.shares import distances_of, share_distances

HALVES, ONE = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double()


def test_by_hand():
    found = share_distances(HALVES, ONE)
    assert found.linf == 0.5
    assert found.cosine == pytest.approx(1 - 1 / math.sqrt(2))
    # m = (3/4, 1/4): KL(p, m) = log2(2/3) / 2 + log2(2) / 2, and KL(q, m) = log2(4/3).
    divergence = ((math.log2(2 / 3) + 1) / 2 + math.log2(4 / 3)) / 2
    assert found.js == pytest.approx(math.sqrt(divergence))


def test_nothing_in_common_is_farthest_and_equal_shares_are_nearest():
    assert vars(share_distances(ONE, ONE.flip(0))) == {"linf": 1.0, "cosine": 1.0, "js": 1.0}
    assert vars(share_distances(ONE, ONE)) == {"linf": 0.0, "cosine": 0.0, "js": 0.0}


def test_shares_that_differ_by_rounding_have_a_distance():
    """Where rounding makes a divergence negative, its root would be no number."""
    shares = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).double()
    for one in shares / shares.sum(dim=1, keepdim=True):
        moved = one * (1 + 1e-16 * torch.arange(7))
        assert all(0 <= value < 1e-6 for value in vars(share_distances(one, moved)).values())


@given(st.integers(2, 20), st.integers(0, 10**6))
def test_against_scipy(classes, seed):
    source = np.random.default_rng(seed)
    p, q = source.dirichlet([0.3] * classes, size=2)
    found = share_distances(torch.from_numpy(p), torch.from_numpy(q))
    assert found.linf == pytest.approx(distance.chebyshev(p, q))
    assert found.cosine == pytest.approx(distance.cosine(p, q), abs=1e-12)
    assert found.js == pytest.approx(distance.jensenshannon(p, q, base=2), abs=1e-7)


def test_the_score_is_of_the_shares_before_rounding():
    true = torch.tensor([2, 1, 1])
    shares = torch.tensor([0.6, 0.2, 0.2]).double()
    counts = torch.tensor([2, 1, 1])
    found = Restoration(present=counts > 0, counts=counts, proportions=shares)
    assert score(found, true).exact
    assert score(found, true).shares_linf == pytest.approx(0.1)
    rounded = Restoration(present=counts > 0, counts=torch.tensor([3, 0, 1]))
    assert score(rounded, true).shares_linf == pytest.approx(0.25)


def test_sets_and_label_sets_have_no_shares():
    present, counts = torch.tensor([True, False]), torch.tensor([2, 0])
    assert distances_of(Restoration(present), None, counts) is None
    assert score(Restoration(present), counts).shares_js is None
    labels = Restoration(present, counts, multi_label=True, samples=2)
    assert distances_of(labels, counts, counts) is None
    assert distances_of(Restoration(present, 0 * counts), 0 * counts, counts) is None
