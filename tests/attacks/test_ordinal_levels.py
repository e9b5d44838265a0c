"""Levels of a CORAL layer, on its loss by autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from labelleak import InvalidObservation
from labelleak.attacks import level_counts
from synthetic import rng

LEVELS, SIZE = 5, 48


def step(seed, *, zero=False):
    """Weight, biases, their gradients, and the counts of the levels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(20, 60), nn.ReLU()).double()
        weight = nn.Linear(60, 1, bias=False).double().weight
    weight = (torch.zeros_like(weight) if zero else weight.detach()).requires_grad_()
    biases = torch.linspace(1.0, -1.0, LEVELS - 1, dtype=torch.float64).requires_grad_()
    inputs = torch.randn(SIZE, 20, generator=rng(seed), dtype=torch.float64) * (100 if zero else 1)
    levels = torch.randint(LEVELS, (SIZE,), generator=rng(seed + 1)) ** 2 // LEVELS
    logits = body(inputs) @ weight.T + biases
    above = (levels[:, None] > torch.arange(LEVELS - 1)).double()
    # As coral_pytorch writes it: the sum over the thresholds, and the mean over the samples.
    each = functional.logsigmoid(logits) * above
    each = each + (functional.logsigmoid(logits) - logits) * (1 - above)
    (-each.sum(dim=1)).mean().backward()
    return (weight, biases, weight.grad, biases.grad), torch.bincount(levels, minlength=LEVELS)


def test_a_weight_of_zeros_gives_every_level_whatever_the_data():
    for seed in range(4):
        layer, true = step(seed, zero=True)
        found = level_counts(*layer, SIZE)
        assert torch.equal(found.counts, true)
        above = true.flip(0).cumsum(0).flip(0)[1:].double()
        torch.testing.assert_close(found.above, above)


def test_levels_of_an_untrained_network_are_nearly_right():
    right = 0
    for seed in range(10):
        layer, true = step(seed)
        right += int(torch.minimum(level_counts(*layer, SIZE).counts, true).sum())
    assert right > 0.97 * 10 * SIZE


def test_mistakes_that_cancel_show_no_mean_embedding():
    weight, biases = torch.ones(1, 3), torch.tensor([1.0, -1.0])
    found = level_counts(weight, biases, torch.ones(1, 3), torch.tensor([0.1, -0.1]), 40)
    expected = 40 * (torch.sigmoid(biases.double()) - torch.tensor([0.1, -0.1]))
    torch.testing.assert_close(found.above, expected)
    # A little more on one side moves the prediction a little, and not to its end.
    near = level_counts(weight, biases, torch.ones(1, 3), torch.tensor([0.101, -0.1]), 40)
    torch.testing.assert_close(near.above, found.above, atol=0.5, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_such_layer_is_refused():
    weight, biases = torch.ones(1, 3), torch.ones(2)
    with pytest.raises(InvalidObservation, match="one weight"):
        level_counts(torch.ones(2, 3), biases, torch.ones(2, 3), biases, 8)
    with pytest.raises(InvalidObservation, match="NaN or infinite"):
        level_counts(weight, biases, weight, biases / 0, 8)
