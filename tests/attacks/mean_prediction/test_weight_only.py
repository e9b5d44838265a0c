from dataclasses import replace

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.mean_prediction.weight_only import restored_bias_gradient
from labelleak.errors import MissingKnowledge
from labelleak.observation import Head
from synthetic import one_embedding


@pytest.mark.parametrize("flipped", [False, True])
def test_the_weight_alone_tells(flipped):
    """Embeddings of one sign and either, with and without a bias in the head."""
    batch = one_embedding(30, 60, 24, seed=5)
    if flipped:
        batch.embeddings[:, ::2] *= -1.0
    gradient = replace(batch.gradient(), bias=None)
    for head in (Head(batch.weight, batch.bias), None):
        if head is None:
            batch.bias = torch.zeros(30, dtype=torch.float64)
            seen = batch.observe(bias=False)
        else:
            seen = batch.observe(gradient)
        found = restore(seen, "pooled")
        assert torch.equal(found.counts, batch.counts)
        assert found.intervals is None


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_an_estimate_of_the_length_narrows_the_search(factor):
    batch = one_embedding(30, 60, 24, seed=5)
    seen = batch.observe(replace(batch.gradient(), bias=None))
    length = factor * float(batch.embeddings[0].norm())
    found = restored_bias_gradient(seen, length)
    torch.testing.assert_close(found, batch.gradient().bias, rtol=0.05, atol=1e-4)


def test_without_bias_and_batch_size_there_is_nothing_to_go_by():
    with pytest.raises(MissingKnowledge, match="batch size"):
        restore(one_embedding(6, 12, 4).observe(bias=False, batch_size=None), "pooled")
