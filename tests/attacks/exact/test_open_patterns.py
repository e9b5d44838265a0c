"""Two classes: all patterns of open units are tried."""

import pytest
import torch
from exact_batches import endless, restored
from exact_networks import network, update_of, whole_update

from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.open_patterns import can_try_patterns, directions_by_open_patterns
from labelleak.attacks.exact.previous_layer import previous_layers
from synthetic import rng


def searched(seen, size):
    layer = previous_layers(seen)[0]
    return layer, LayerSearch(seen, layer, float(size), rng(), endless()).factors


@pytest.mark.parametrize("size", [1, 2, 16, 20])
def test_every_direction_has_the_open_units_of_a_sample(size):
    model = network((60, 100, 2))
    seen, inputs, _ = whole_update(model, size, batch_size=size)
    layer, factors = searched(seen, size)
    head, weight = layer.head[:, :-1], layer.outputs(factors.right.T).T
    assert can_try_patterns(factors, head)
    directions = directions_by_open_patterns(factors, weight, head, endless())
    found = directions @ factors.left.T / (head[0] - head[1])
    found = found / found.abs().amax(dim=1, keepdim=True) > 0.5
    with torch.no_grad():
        is_open = model[0](inputs) > 0
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in is_open.tolist()}


def test_sixteen_samples_of_two_classes_are_certified_with_one_hidden_layer():
    seen, _, labels = whole_update(network((60, 100, 2)), 16, batch_size=16)
    found = restored(seen)
    assert found.certified
    assert torch.equal(found.counts, torch.bincount(labels, minlength=2))


def test_a_pattern_that_is_a_difference_of_two_samples_is_left_out():
    # The second sample opens every unit that the first does, and others.
    model = network((30, 60, 2))
    with torch.no_grad():
        model[0].weight[:, 0] = 0.5
    inputs = torch.randn(5, 30, generator=rng())
    inputs[1] = inputs[0]
    inputs[1, 0] += 1.0
    is_open = model[0](inputs) > 0
    assert bool((is_open[1] >= is_open[0]).all())
    assert bool((is_open[1] != is_open[0]).any())
    seen = update_of(model, inputs, torch.tensor([0, 1, 0, 1, 1]), batch_size=5)
    layer, factors = searched(seen, 5)
    head, weight = layer.head[:, :-1], layer.outputs(factors.right.T).T
    directions = directions_by_open_patterns(factors, weight, head, endless())
    found = (directions @ factors.left.T / (head[0] - head[1])).abs() > 1e-3
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in is_open.tolist()}


def test_samples_that_leave_no_trace_do_not_hide_the_others():
    model = network((40, 100, 2))
    generator = rng(1)
    inputs = torch.randn(8, 40, generator=generator)
    # So sure of its label that its gradient is rounding.
    inputs[0] *= 200.0
    labels = torch.randint(2, (8,), generator=generator)
    labels[0] = model(inputs[:1]).argmax()
    found = restored(update_of(model, inputs, labels, batch_size=8))
    assert not found.certified
    assert found.invisible == 1
    assert torch.equal(found.certain, torch.bincount(labels[1:], minlength=2))


def test_too_few_units_to_confirm_a_pattern_are_none():
    seen, _, _ = whole_update(network((40, 24, 2)), 12, batch_size=12)
    layer, factors = searched(seen, 12)
    assert not can_try_patterns(factors, layer.head[:, :-1])
    # Nor are patterns those of three classes.
    seen, _, _ = whole_update(network((40, 100, 3)), 4, batch_size=4)
    layer, factors = searched(seen, 4)
    assert not can_try_patterns(factors, layer.head[:, :-1])
