import pytest
import torch

from labelleak.attacks import restore
from labelleak.errors import MissingKnowledge
from synthetic import untrained


def test_a_batch_size_that_nobody_told_is_read_off_where_it_shows():
    batch = untrained(30, 60, 40, spread=0.05)
    found = restore(batch.observe(batch_size=None), "pooled")
    assert torch.equal(found.counts, batch.counts)
    summed = batch.observe(batch.autograd(reduction="sum"), reduction="sum", batch_size=None)
    assert torch.equal(restore(summed, "pooled").counts, batch.counts)


def test_a_batch_size_that_does_not_show_is_not_made_up():
    batch = untrained(10, 60, 400, spread=0.6)
    found = restore(batch.observe(batch_size=None), "pooled")
    assert found.counts is None
    assert float(found.proportions.sum()) == pytest.approx(1.0)
    assert torch.allclose(found.proportions, batch.counts.double() / 400, atol=0.05)
    summed = batch.observe(batch.autograd(reduction="sum"), reduction="sum", batch_size=None)
    with pytest.raises(MissingKnowledge, match="a summed loss needs the batch size"):
        restore(summed, "pooled")


def test_a_batch_size_is_not_told_by_the_classes_that_are_absent():
    # Of 500 classes at most 32 are there: that the others' counts are whole proves no batch of one.
    batch = untrained(500, 30, 32, spread=0.02)
    found = restore(batch.observe(batch_size=None), "pooled")
    assert torch.equal(found.counts, batch.counts)
