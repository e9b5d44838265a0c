"""Steps of every optimizer, against a loop written out with torch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from labelleak.local_steps import make_optimizer, take_steps
from labelleak.loss import Loss
from labelleak.training import LocalTraining

RECIPES = [
    (LocalTraining("sgd", [0.1, 0.05, 0.02], momentum=0.9, nesterov=True, weight_decay=0.1), "SGD"),
    (LocalTraining("adam", 0.01, options={"betas": (0.8, 0.9)}, weight_decay=0.1), "Adam"),
    (LocalTraining("adamw", 0.01, options={"eps": 1e-3}, weight_decay=0.1), "AdamW"),
    (LocalTraining("rmsprop", 0.01, momentum=0.5, options={"alpha": 0.9}), "RMSprop"),
    (LocalTraining("adagrad", 0.01, options={"lr_decay": 0.1}), "Adagrad"),
]
OPTIONS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "AdamW": {"eps": 1e-3, "weight_decay": 0.1},
    "RMSprop": {"momentum": 0.5, "alpha": 0.9},
    "Adagrad": {"lr_decay": 0.1},
}


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (12,), generator=generator)
    return torch.randn(12, 6, generator=generator).double(), labels


@pytest.mark.parametrize(("recipe", "name"), RECIPES, ids=[name for _, name in RECIPES])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_steps_are_those_of_torch(model, recipe, name, smoothing):
    inputs, labels = data()
    batches = list(torch.arange(12).split(4))
    by_hand = deepcopy(model)
    rates = recipe.learning_rate if name == "SGD" else (recipe.learning_rate,) * 3
    optimizer = getattr(torch.optim, name)(by_hand.parameters(), lr=rates[0], **OPTIONS[name])
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    for rate, batch in zip(rates, batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss(by_hand(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    take_steps(model, inputs, labels, batches, recipe, Loss(label_smoothing=smoothing).value)
    for own, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_what_requires_no_gradient_stays_as_it_is(model):
    model[0].requires_grad_(False)
    before = deepcopy(model.state_dict())
    take_steps(model, *data(), [torch.arange(12)], LocalTraining("adam", 0.1), Loss().value)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_a_recipe_without_an_optimizer_is_sgd(model):
    assert isinstance(
        make_optimizer(model.parameters(), LocalTraining(learning_rate=0.1)), torch.optim.SGD
    )
