"""Which layer before the head is taken."""

from dataclasses import replace

import pytest
import torch
from exact_batches import restored
from exact_networks import NETWORK, network, whole_update

from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.errors import MissingKnowledge


def test_which_layer_is_taken():
    seen, inputs, _ = whole_update(NETWORK, 8, batch_size=8)
    layer = previous_layers(seen)[0]
    assert layer.gradient.shape == (100, 121)
    assert layer.behind_relu
    with torch.no_grad():
        hidden = torch.cat([NETWORK[:2](inputs).double(), torch.ones(8, 1).double()], dim=1)
        embeddings = NETWORK[:-1](inputs).double()
    assert torch.allclose(layer.embed(hidden)[:, :-1], embeddings, atol=1e-5)
    assert previous_layer(replace(seen, model=None)) is None
    smooth = torch.nn.Sequential(*NETWORK[:3], torch.nn.SiLU(), NETWORK[4]).eval()
    assert previous_layer(replace(seen, model=smooth)) is None
    straight = torch.nn.Sequential(*NETWORK[:3], torch.nn.Identity(), NETWORK[4]).eval()
    assert previous_layer(replace(seen, model=straight)) is None


def test_a_layer_that_takes_the_raw_inputs_is_taken():
    seen, _, _ = whole_update(network((20, 100, 5)), 8, batch_size=8)
    layer = previous_layers(seen)[0]
    assert layer.gradient.shape == (100, 21)
    assert not layer.behind_relu


def test_a_layer_of_one_unit_is_no_error():
    seen, _, _ = whole_update(network((20, 60, 1, 5)), 3, batch_size=3, head="4")
    assert previous_layers(seen)[0] is None
    with pytest.raises(MissingKnowledge):
        restored(seen)
