"""The search by the head's gradient."""

import pytest
import torch
from exact_batches import DENSE, endless

from labelleak.attacks.exact.head_search import HeadSearch
from synthetic import rng


def test_it_knows_when_it_is_complete():
    search = HeadSearch(DENSE.observe(), 8.0, rng(), endless())
    assert not search.is_complete
    search.run()
    assert search.is_complete
    whole = search.contributions().T @ search.found.inputs
    assert torch.allclose(whole, search.factors.matrix, atol=1e-5)
    assert search.rest_of_head().norm() < 1e-5 * search.factors.matrix.norm()
    assert search.times(8.0).tolist() == [1] * 8


@pytest.mark.parametrize("divisor", [8.0, None])
def test_its_evidence_is_that_of_all_samples(divisor):
    search = HeadSearch(DENSE.observe(), 8.0, rng(), endless())
    nothing = search.evidence(divisor)
    assert len(nothing.embeddings) == len(nothing.sure) == 0
    assert not nothing.proves()
    search.run()
    evidence = search.evidence(divisor)
    assert evidence.sure.all()
    assert evidence.too_weak == 0
    # Nothing is proven of a loss that divides by who knows what.
    assert evidence.proves() == (divisor is not None)
