import pytest
import torch

from labelleak.attacks import restore
from labelleak.observation import HeadGradient
from synthetic import emitted_by_hand, untrained


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_published_algorithm(seed):
    batch = untrained(12, 20, 30, seed, spread=0.5)
    sums = batch.gradient().weight.sum(dim=1).tolist()
    impact = -12 * max(sums) / 30
    found = restore(batch.observe(), "e2egi")
    assert found.counts.tolist() == emitted_by_hand(sums, [impact] * 12, 30, [0.0] * 12)


def test_a_case_by_hand():
    """The largest row sum is 0.75, so the impact is 4 / 3 * 0.75 = 1."""
    gradient = torch.tensor([[-1.5], [0.5], [0.25], [0.75]], dtype=torch.float64)
    found = restore(untrained(4, 1, 3).observe(HeadGradient(gradient), bias=False), "e2egi")
    assert found.counts.tolist() == [2, 0, 1, 0]


def test_without_a_row_that_rises_one_class_takes_all():
    gradient = torch.tensor([[-1.0], [-2.0], [-3.0], [-1.0]], dtype=torch.float64)
    found = restore(untrained(4, 1, 9).observe(HeadGradient(gradient), bias=False), "e2egi")
    assert found.counts.tolist() == [1, 1, 6, 1]
