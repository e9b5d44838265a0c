"""Which layer before the head is taken."""

from dataclasses import replace

import pytest
import torch
from exact_batches import restored
from exact_networks import NETWORK, network, update_of, whole_update

from labelleak.attacks.exact.activation import GELU, RELU, TANH
from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.errors import MissingKnowledge
from labelleak.training import LocalTraining
from synthetic import rng


def test_which_layer_is_taken():
    seen, inputs, _ = whole_update(NETWORK, 8, batch_size=8)
    layer = previous_layers(seen)[0]
    assert layer.gradient.shape == (100, 121)
    assert layer.behind_relu
    with torch.no_grad():
        hidden = torch.cat([NETWORK[:2](inputs).double(), torch.ones(8, 1).double()], dim=1)
        embeddings = NETWORK[:-1](inputs).double()
    assert torch.allclose(layer.embed(hidden)[:, :-1], embeddings, atol=1e-5)
    assert previous_layers(replace(seen, model=None)) == []
    smooth = torch.nn.Sequential(*NETWORK[:3], torch.nn.SiLU(), NETWORK[4]).eval()
    # Of five classes.
    assert previous_layers(replace(seen, model=smooth)) == []


class Pooler(torch.nn.Module):
    """A layer and a head, and between them what no module names."""

    def __init__(self):
        super().__init__()
        self.dense, self.dropout = torch.nn.Linear(20, 40), torch.nn.Dropout(0.1)
        self.out_proj = torch.nn.Linear(40, 2)

    def forward(self, hidden):
        return self.out_proj(self.dropout(torch.tanh(self.dense(hidden))))


@pytest.mark.parametrize(
    ("between", "activations"),
    [
        ([torch.nn.Tanh()], [TANH]),
        ([torch.nn.GELU(), torch.nn.Dropout(0.1)], [GELU]),
        ([torch.nn.ReLU()], [RELU]),
        # Of a sequence it is known that nothing else is there.
        ([], []),
        ([torch.nn.Dropout(0.1)], []),
        ([torch.nn.LayerNorm(40)], []),
        ([torch.nn.Tanh(), torch.nn.LayerNorm(40)], []),
        ([torch.nn.LeakyReLU()], []),
    ],
)
def test_the_activation_is_the_one_that_the_model_names(between, activations):
    model = torch.nn.Sequential(torch.nn.Linear(20, 40), *between, torch.nn.Linear(40, 2)).eval()
    seen, _, _ = whole_update(model, 4, batch_size=4)
    layers = previous_layers(seen)
    assert [layer.activation for layer in layers] == activations
    assert not any(layer.is_guess for layer in layers)


def test_a_dropout_that_is_at_work_is_in_the_way():
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(40, 2)
    )
    seen, _, _ = whole_update(model.eval(), 4, batch_size=4)
    assert len(previous_layers(seen)) == 1
    model.train()
    assert previous_layers(seen) == []


def test_an_activation_without_a_module_is_guessed():
    torch.manual_seed(0)
    model = Pooler().eval()
    inputs, labels = torch.randn(3, 20, generator=rng()), torch.tensor([0, 1, 1])
    seen = update_of(model, inputs, labels, batch_size=3)
    layers = previous_layers(seen)
    assert all(layer.is_guess for layer in layers)
    assert {TANH, GELU, RELU} < {layer.activation for layer in layers}
    found = restored(seen)
    assert found.certified
    assert found.counts.tolist() == [1, 2]
    # One sample more than there are: nothing is proven, and so nothing is said.
    with pytest.raises(MissingKnowledge):
        restored(replace(seen, training=LocalTraining(batch_size=4)))


def test_a_layer_that_takes_the_raw_inputs_is_taken():
    seen, _, _ = whole_update(network((20, 100, 5)), 8, batch_size=8)
    layer = previous_layers(seen)[0]
    assert layer.gradient.shape == (100, 21)
    assert not layer.behind_relu


def test_a_layer_of_one_unit_is_no_error():
    seen, _, _ = whole_update(network((20, 60, 1, 5)), 3, batch_size=3, head="4")
    assert previous_layers(seen) == []
    with pytest.raises(MissingKnowledge):
        restored(seen)
