"""The attack against a batch whose counts it must find, and its place in the list."""

from typing import Literal

import pytest
import torch

import labelleak as ll
from labelleak.attacks import find_attack


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_counts_what_a_head_without_weights_has_seen(
    reduction: Literal["mean", "sum"],
) -> None:
    """Such a head predicts the same for every sample: the assumption holds exactly."""
    head = torch.nn.Linear(20, 5)
    torch.nn.init.zeros_(head.weight)
    labels = torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
    seen = ll.capture(head, torch.rand(8, 20), labels, loss=ll.Loss(reduction=reduction))
    found = ll.restore(seen, "shared-shift")
    assert found.counts is not None
    assert found.counts.tolist() == [3, 2, 0, 2, 1]
    assert torch.equal(found.counts, torch.bincount(labels, minlength=5))


def test_labelleak_lists_it() -> None:
    assert find_attack("shared-shift").package == "my-attack 0.1.0"
