from functools import partial

import numpy as np
import pytest
import torch

from head_gradients import head_gradients, observation, rng
from labelleak.defenses import (
    defend,
    soteria,
    soteria_mask,
)


def network(*body, features=3):
    """A body in evaluation mode, and a head of two classes that is its last layer."""
    return torch.nn.Sequential(*body, torch.nn.Linear(features, 2)).eval()


def soteria_example(*activation):
    """r = (3x + 4y, x, -2y), with slopes of norm 5, 1 and 2."""
    layer = torch.nn.Linear(2, 3, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]])
    return network(layer, *activation)


@pytest.mark.parametrize(
    ("activation", "percent", "kept"),
    [
        # Slopes over values at (1, 1) and (2, 0): 5/7 + 5/6 = 1.55, 1 + 1/2 = 1.5, 2/2 + 2/0.
        ([], 0, [True, True, True]),
        ([], 40, [True, False, True]),
        ([], 60, [False, False, True]),
        ([], 100, [False, False, True]),
        # A ReLU switches the third feature off: no value and no slope, so it is pruned first.
        ([torch.nn.ReLU()], 40, [True, True, False]),
        ([torch.nn.ReLU()], 60, [True, False, False]),
    ],
)
def test_soteria_prunes_what_says_most_of_the_input(activation, percent, kept):
    model = soteria_example(*activation)
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    mask = soteria_mask(model, inputs, percent, head=str(len(model) - 1))
    assert mask.tolist() == kept


@pytest.mark.parametrize("percent", [10, 25, 50, 90])
def test_soteria_scores_follow_the_jacobian(percent):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(12, 9), torch.nn.Tanh(), torch.nn.Linear(9, 8)
        )
    inputs = torch.randn(6, 3, 2, 2, generator=rng())
    mask = soteria_mask(network(body, features=8), inputs, percent, head="1")
    jacobians = torch.stack([torch.func.jacrev(lambda x: body(x[None])[0])(x) for x in inputs])
    norms = jacobians.flatten(2).norm(dim=2)
    scores = (norms / body(inputs).abs()).sum(dim=0).detach().numpy()
    assert mask.tolist() == (scores >= np.percentile(scores, percent)).tolist()
    assert not mask.all()
    assert inputs.grad is None
    assert not inputs.requires_grad


def test_soteria_changes_the_columns_of_the_head_alone():
    mask = torch.tensor([True, False, True, True, False, True, True])
    before = observation(gradients={"conv.weight": torch.ones(3), **head_gradients()})
    after = defend(before, partial(soteria, mask=mask, weight_name="fc.weight"))
    # What the head's gradient is if the pruned features are zero in every sample's embedding.
    assert torch.equal(after.gradient.weight, head_gradients()["fc.weight"] * mask)
    assert torch.equal(after.gradient.bias, before.gradient.bias)
    assert torch.equal(after.gradients["conv.weight"], torch.ones(3))


@pytest.mark.parametrize(
    ("mask", "weight_name", "message"),
    [
        (torch.ones(7, dtype=torch.bool), "head.weight", "no gradient 'head.weight': there are fc"),
        (torch.ones(5, dtype=torch.bool), "fc.weight", r"shape \(5,\) and torch.bool for"),
        (torch.ones(7), "fc.weight", "one bool for each of its columns"),
        (torch.ones(5, dtype=torch.bool), "fc.bias", "one bool for each of its columns"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(unchecked, mask, weight_name, message):
    with pytest.raises(ValueError, match=message):
        soteria(head_gradients(), mask, weight_name)


def test_soteria_refuses_what_it_cannot_score():
    model, inputs = soteria_example(), torch.ones(4, 2)
    with pytest.raises(ValueError, match="percent 101"):
        soteria_mask(model, inputs, 101, head="1")
    convolution = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten()).eval()
    with pytest.raises(ValueError, match="layer '0' does not take one vector per sample once"):
        soteria_mask(convolution, torch.ones(4, 1, 2, 2), 10, head="0")
    with pytest.raises(ValueError, match=r"call model\.eval"):
        soteria_mask(model.train(), inputs, 10, head="1")
