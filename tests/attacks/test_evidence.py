import pytest
import torch

from labelleak.attacks.evidence import bias_gradient, instances, mean_divisor, row_sums
from labelleak.errors import MissingKnowledge
from labelleak.observation import HeadGradient
from synthetic import untrained


def test_a_summed_loss_is_put_to_the_scale_of_a_mean():
    batch = untrained(5, 8, 6)
    mean = batch.observe()
    total = HeadGradient(mean.gradient.weight * 6, mean.gradient.bias * 6)
    summed = batch.observe(total, reduction="sum")
    torch.testing.assert_close(row_sums(summed), row_sums(mean))
    torch.testing.assert_close(bias_gradient(summed), bias_gradient(mean))
    torch.testing.assert_close(row_sums(mean), mean.gradient.weight.sum(dim=1))
    assert (mean_divisor(mean), mean_divisor(summed)) == (1, 6)


def test_what_is_missing_is_named():
    batch = untrained(5, 8, 6)
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        row_sums(batch.observe(reduction="sum", batch_size=None))
    with pytest.raises(MissingKnowledge, match="bias gradient is missing"):
        bias_gradient(batch.observe(bias=False))
    with pytest.raises(MissingKnowledge, match="batch size is missing"):
        instances(batch.observe(batch_size=None))
