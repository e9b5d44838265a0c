from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak import capture
from labelleak.attacks.probe import class_means, passages, probe
from labelleak.errors import InvalidObservation, MissingKnowledge
from synthetic import rng


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 4)
        )


def inputs(number):
    return torch.randn(number, 6, generator=rng())


def observed(model, **knowledge):
    observation = capture(model, inputs(8), torch.arange(8) % 4)
    return replace(observation, **knowledge)


def test_what_arrives_at_the_head(model):
    model.eval()
    given = inputs(150)
    found = probe(observed(model), given)
    with torch.no_grad():
        torch.testing.assert_close(found.embeddings, model[:4](given).double())
        torch.testing.assert_close(found.logits.float(), model(given), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.probabilities, found.logits.softmax(1))
    torch.testing.assert_close(found.activity, found.embeddings.sum(1))
    assert not found.logits.requires_grad


def test_other_weights(model):
    model.eval()
    other = {name: value + 1 for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probe(observed(model), inputs(3), other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.load_state_dict(other)
    with torch.no_grad():
        torch.testing.assert_close(found.logits.float(), model(inputs(3)), rtol=1e-4, atol=1e-4)


def test_training_mode_goes_in_groups_and_leaves_everything_as_it_was(model):
    model.train()
    observation = observed(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first, second = probe(observation, inputs(33)), probe(observation, inputs(33))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert not torch.allclose(first.logits, probe(observation, inputs(33)).logits)


def test_rows_stay_in_order_in_training_mode():
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4)).train()
    given = inputs(50)
    torch.testing.assert_close(probe(observed(model), given).embeddings, given.double())


def test_inputs_that_do_not_fit(model):
    model.eval()
    with pytest.raises(InvalidObservation, match=r"shape \(5,\) do not go through") as refused:
        probe(observed(model), torch.ones(3, 5))
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_named(model):
    observation = observed(model)
    with pytest.raises(MissingKnowledge, match="the head has no name"):
        probe(replace(observation, head=replace(observation.head, name=None)), inputs(2))
    with pytest.raises(MissingKnowledge, match="whole model is missing"):
        probe(replace(observation, model=None), inputs(2))


def test_means_of_classes():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], dtype=torch.float64)
    found = class_means(values, torch.tensor([1, 0, 1]), 2)
    assert found.tolist() == [[3.0, 4.0], [3.0, 5.5]]


def test_tokens_stay_tokens():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    tokens = torch.tensor([[1, 2], [3, 8]])
    (passage,) = passages(model, model[2], tokens)
    assert torch.equal(passage.left, model(tokens))
