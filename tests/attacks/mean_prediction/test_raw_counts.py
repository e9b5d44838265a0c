"""Counts that a mean prediction implies: the short way of the plain loss against the long one."""

import pytest
import torch

from labelleak.attacks.mean_prediction.raw_counts import raw_counts
from synthetic import one_embedding, rng


@pytest.mark.parametrize("batch_size", [4, 9])
def test_weights_of_one_change_nothing(batch_size):
    batch = one_embedding(6, 5, 8)
    plain = batch.observe(batch_size=batch_size)
    weighted = batch.observe(batch_size=batch_size, class_weights=torch.ones(6))
    predictions = torch.softmax(torch.randn(6, 3, generator=rng()).double(), dim=0)
    db = torch.randn(6, 1, generator=rng(1)).double()
    db = 0.01 * (db - db.mean())
    found = raw_counts(plain, predictions, db, 2.0 * batch_size, batch_size)
    expected = raw_counts(weighted, predictions, db, 2.0 * batch_size, batch_size)
    assert torch.allclose(found, expected, rtol=1e-12)
