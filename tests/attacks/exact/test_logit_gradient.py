"""The gradient of a sample's loss by its logits."""

import pytest
import torch
from exact_batches import FLOAT

from labelleak.attacks.exact.logit_gradient import logit_directions, logit_gradients
from synthetic import rng


def test_it_is_the_derivative_of_the_loss():
    logits = torch.randn(5, 7, generator=rng(), dtype=FLOAT).requires_grad_()
    labels = torch.tensor([0, 3, 6, 3, 2])
    weights = torch.linspace(1.0, 2.0, 7, dtype=FLOAT)
    torch.nn.functional.cross_entropy(logits, labels, weight=weights, reduction="sum").backward()
    assert torch.allclose(logit_gradients(logits.detach(), labels, weights), logits.grad)


def test_the_direction_of_a_confident_sample_is_regular():
    logits = torch.tensor([[800.0, 1.0, 0.0]], dtype=FLOAT)
    direction = logit_directions(logits, torch.tensor([0]))
    share = float(torch.sigmoid(torch.tensor(1.0, dtype=FLOAT)))
    assert direction.tolist() == [pytest.approx([-1.0, share, 1.0 - share])]
