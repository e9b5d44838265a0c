"""Samples by the closed units of a layer that takes the raw inputs."""

import pytest
import torch
from exact_batches import endless, restored
from exact_networks import network, whole_update

from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.open_units import come_from_head, inputs_by_open_units
from labelleak.attacks.exact.previous_layer import previous_layers
from synthetic import rng


@pytest.mark.parametrize(("classes", "size"), [(2, 8), (5, 8)])
def test_one_hidden_layer_is_enough_for_more_samples_than_classes(classes, size):
    seen, _, labels = whole_update(network((40, 100, classes)), size, batch_size=size)
    found = restored(seen)
    assert found.certified
    assert torch.equal(found.counts, torch.bincount(labels, minlength=classes))
    assert torch.equal(found.certain, found.counts)


def test_the_inputs_follow_from_the_directions_of_the_gradients():
    model = network((40, 100, 3))
    seen, inputs, labels = whole_update(model, 6, batch_size=6)
    layer = previous_layers(seen)[0]
    factors = LayerSearch(seen, layer, 6.0, rng(), endless()).factors
    directions = inputs_by_open_units(factors, layer.head[:, :-1], rng(), endless())
    found = directions @ factors.right.T
    found = found[:, :-1] / found[:, -1:]
    assert torch.cdist(inputs.double(), found).amin(dim=1).max() < 1e-3
    # Those of the samples come from the head's logits, and a mixture of two does not.
    extended = torch.cat([inputs, torch.ones(6, 1)], dim=1).double()
    q = layer.logit_gradients(extended, labels)
    samples = layer.pull_back(extended, q) @ factors.left
    samples = torch.nn.functional.normalize(samples, dim=1)
    mixed = torch.nn.functional.normalize(samples[:1] + samples[1:2], dim=1)
    both = torch.cat([samples, mixed])
    assert come_from_head(factors, both, layer.head[:, :-1]).tolist() == [True] * 6 + [False]


def test_nothing_is_said_where_not_all_samples_are_found():
    # All units are open for all samples: no zeros tell them apart.
    model = network((20, 60, 2))
    with torch.no_grad():
        model[0].bias.fill_(50.0)
    seen, _, _ = whole_update(model, 5, batch_size=5)
    layer = previous_layers(seen)[0]
    factors = LayerSearch(seen, layer, 5.0, rng(), endless()).factors
    assert factors.rank < 5 or not len(
        inputs_by_open_units(factors, layer.head[:, :-1], rng(), endless())
    )
