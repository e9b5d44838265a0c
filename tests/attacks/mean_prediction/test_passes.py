from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak.attacks.mean_prediction.passes import (
    as_the_client,
    entering,
    first_vector_layer,
    logits_of,
    mean_set,
)
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.lab.networks import build
from labelleak.observation import Head
from networks import Tokens
from synthetic import rng, untrained


def observed(model, name):
    """An observation of a model with a head of that name; what the gradient is does not matter."""
    layer = model.get_submodule(name)
    seen = untrained(layer.out_features, layer.in_features, 4, dtype=torch.float32)
    head = Head(layer.weight.detach(), layer.bias.detach(), name)
    return replace(seen.observe(dtype=torch.float32), head=head, model=model)


@pytest.mark.parametrize("training", [False, True])
def test_batchnorm_alone_is_in_the_mode_of_the_client(training):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train(training)
    inputs = torch.randn(50, 3, generator=rng())
    with as_the_client(model):
        assert [module.training for module in model] == [False, training, False]
        found = model(inputs)
    if training:
        torch.testing.assert_close(found.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    assert int(model[1].num_batches_tracked) == 0
    assert model.training == training


def test_logits_are_the_head_s_whatever_follows():
    model = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(dim=1))
    inputs = torch.randn(150, 3, generator=rng())
    seen = observed(model, "0")
    with torch.no_grad():
        torch.testing.assert_close(logits_of(seen, model, inputs), model[0](inputs).double())
        torch.testing.assert_close(entering(model, model[0], inputs), inputs.double())


def test_logits_that_are_none_are_refused():
    model = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4))
    with pytest.raises(MissingKnowledge, match="one vector of finite logits per input"):
        logits_of(observed(model, "1"), model, torch.ones(5, 6))
    with pytest.raises(InvalidObservation, match=r"shape \(7,\) do not go through"):
        logits_of(observed(model, "1"), model, torch.ones(5, 7))


def test_a_layer_s_input_gets_the_mean_that_it_should_have():
    layer = nn.Linear(3, 2).double()
    inputs = torch.rand(50, 3, generator=rng(), dtype=torch.float64)
    inputs[:, 2] = 0.0
    target = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    with mean_set(layer, inputs.mean(dim=0), target):
        found = entering(layer, layer, inputs)
    assert torch.allclose(found.mean(dim=0), target)
    assert float(found.min()) >= 0.0


def test_the_first_layer_that_takes_vectors():
    lenet = build("lenet5", classes=4, image_shape=(3, 32, 32)).eval()
    name, layer = first_vector_layer(observed(lenet, "fc"), lenet, torch.ones(2, 3, 32, 32))
    assert (name, layer) == ("hidden.0", lenet.hidden[0])
    fcn = build("fcn-3", classes=4, image_shape=(1, 8, 8)).eval()
    name, layer = first_vector_layer(observed(fcn, "fc"), fcn, torch.ones(2, 1, 8, 8))
    assert (name, layer) == ("hidden.0", fcn.hidden[0])
    model = Tokens().eval()
    name, layer = first_vector_layer(observed(model, "fc"), model, torch.ones(2, 1, 16, 16))
    assert (name, layer) == ("fc", model.fc)
