"""Samples that a search has found."""

import torch
from exact_batches import FLOAT

from labelleak.attacks.exact.samples import Samples


def samples(rows, labels):
    inverse = torch.arange(1.0, len(labels) + 1.0, dtype=FLOAT)
    return Samples(torch.tensor(rows, dtype=FLOAT), torch.tensor(labels), inverse)


def test_joining_keeps_the_first_of_those_that_are_the_same():
    first = samples([[1.0, 2.0], [3.0, 1.0]], [4, 5])
    second = samples([[1.001, 2.0], [1.0, 2.0], [5.0, 0.0], [5.001, 0.0]], [4, 5, 4, 4])
    both = first.join(second)
    assert both.labels.tolist() == [4, 5, 5, 4]
    assert both.inputs.tolist() == [[1.0, 2.0], [3.0, 1.0], [1.0, 2.0], [5.0, 0.0]]
    assert both.inverse_weights.tolist() == [1.0, 2.0, 2.0, 3.0]


def test_none_are_no_samples():
    none = Samples.none(torch.ones(3, 2, dtype=FLOAT))
    assert len(none) == 0
    assert len(none.join(none)) == 0
    some = samples([[1.0, 2.0]], [4])
    assert torch.equal(none.join(some).inputs, some.inputs)
