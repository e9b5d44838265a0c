"""Exact restoration by the layer before the head: more samples than classes."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import restore
from labelleak.attacks.exact.earlier import LayerSearch, layer_before
from labelleak.errors import MissingKnowledge
from labelleak.updates import observe
from synthetic import rng


def _network(widths, seed=0):
    """Fully connected, ReLU between the layers; the last is the head."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def _whole_update(model, size, seed=0, spread=1.0, **knowledge):
    generator = rng(seed)
    inputs = torch.randn(size, model[0].in_features, generator=generator)
    inputs = inputs[:1] + spread * (inputs - inputs[:1])
    labels = torch.randint(model[-1].out_features, (size,), generator=generator)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    seen = observe(model, dict(zip(names, gradients, strict=True)), **knowledge)
    return seen, inputs, labels


NETWORK = _network((20, 120, 100, 5))


@pytest.mark.parametrize("batch_size", [8, None])
def test_more_samples_than_classes_by_the_layer_before_the_head(batch_size):
    seen, inputs, labels = _whole_update(NETWORK, 8, batch_size=batch_size)
    found = restore(seen, "exact")
    assert found.certified == (batch_size is not None)
    assert torch.equal(found.certain, torch.bincount(labels, minlength=5))
    assert torch.equal(found.counts, found.certain)
    with torch.no_grad():
        embeddings = NETWORK[:-1](inputs).double()
    distances = torch.cdist(found.embeddings, embeddings)
    assert (distances.amin(dim=0) < 1e-3 * embeddings.norm(dim=1)).all()
    nearest = distances.argmin(dim=0)
    assert torch.equal(found.embedding_labels[nearest], labels)


def test_without_the_earlier_layer_so_many_samples_are_refused():
    seen, _, _ = _whole_update(NETWORK, 8, batch_size=8)
    with pytest.raises(MissingKnowledge, match="samples here"):
        restore(replace(seen, gradients=None), "exact")
    # One fully connected layer before the head takes what no ReLU made.
    seen, _, _ = _whole_update(_network((20, 100, 5)), 8, batch_size=8)
    with pytest.raises(MissingKnowledge, match="samples here"):
        restore(seen, "exact")


def test_nothing_is_said_of_more_samples_than_the_layer_can_show():
    """Half of its width: of 70 samples it would show 50, and call the others invisible."""
    for size in (70, None):
        seen, _, _ = _whole_update(NETWORK, 70, batch_size=size)
        with pytest.raises(MissingKnowledge, match="samples here"):
            restore(seen, "exact")
    # Nor where the layer's rank is low beside the batch: inputs that are nearly alike.
    seen, _, _ = _whole_update(NETWORK, 70, batch_size=70, spread=1e-2)
    assert LayerSearch(layer_before(seen), 70, 70.0, rng()).rank == 0


@pytest.mark.parametrize("strength", [1e-5, 1e-3])
def test_noise_on_the_earlier_layer_is_never_certified(strength):
    seen, _, _ = _whole_update(NETWORK, 8, batch_size=8)
    size = float(seen.gradients["2.weight"].square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=strength * size, generator=rng())
    try:
        found = restore(defenses.defend(seen, noise), "exact", time_limit=2.0)
    except MissingKnowledge:
        return
    assert not found.certified


def test_a_wrong_head_gradient_is_not_certified_by_the_earlier_layer():
    """Both gradients have to say the same."""
    seen, _, _ = _whole_update(NETWORK, 8, batch_size=8)
    weight = seen.gradient.weight.clone()
    weight[0] += 1e-2 * weight[1]
    found = restore(replace(seen, gradient=replace(seen.gradient, weight=weight)), "exact")
    assert not found.certified


def test_which_layer_is_taken():
    seen, inputs, _ = _whole_update(NETWORK, 8, batch_size=8)
    layer = layer_before(seen)
    assert layer.gradient.shape == (100, 121)
    with torch.no_grad():
        hidden = torch.cat([NETWORK[:2](inputs).double(), torch.ones(8, 1).double()], dim=1)
        embeddings = NETWORK[:-1](inputs).double()
    assert torch.allclose(layer.embed(hidden)[:, :-1], embeddings, atol=1e-5)
    assert layer_before(replace(seen, model=None)) is None
    smooth = torch.nn.Sequential(*NETWORK[:3], torch.nn.SiLU(), NETWORK[4]).eval()
    assert layer_before(replace(seen, model=smooth)) is None


def test_a_layer_of_one_unit_is_no_error():
    seen, _, _ = _whole_update(_network((20, 60, 1, 5)), 3, batch_size=3, head="4")
    assert layer_before(seen) is None
    with pytest.raises(MissingKnowledge):
        restore(seen, "exact", time_limit=5.0)


def test_samples_of_which_half_are_there_twice_are_certain_though_nobody_told_the_batch_size():
    generator = rng(3)
    inputs, labels = torch.randn(6, 20, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])
    inputs, labels = torch.cat([inputs, inputs[:3]]), torch.cat([labels, labels[:3]])
    loss = torch.nn.functional.cross_entropy(NETWORK(inputs), labels)
    found = restore(
        observe(NETWORK, torch.autograd.grad(loss, list(NETWORK.parameters()))), "exact"
    )
    # The weights of single samples and of pairs do not tell which of them are single.
    assert found.counts is None
    assert found.invisible is None
    assert torch.equal(found.certain, torch.bincount(labels[:6], minlength=5))


def test_a_sample_that_leaves_no_trace_is_counted_though_nobody_told_the_batch_size():
    """The others' weights tell how many samples the loss divides by."""
    generator = rng(1)
    inputs = torch.randn(8, 20, generator=generator)
    inputs[0] *= 500.0
    labels = torch.randint(5, (8,), generator=generator)
    labels[0] = NETWORK(inputs[:1]).argmax()
    torch.nn.functional.cross_entropy(NETWORK(inputs), labels).backward()
    gradients = {name: p.grad for name, p in NETWORK.named_parameters()}
    NETWORK.zero_grad()
    found = restore(observe(NETWORK, gradients), "exact")
    assert found.invisible == 1
    assert not found.certified
    assert int(found.counts.sum()) == 8
    assert torch.equal(found.certain, torch.bincount(labels[1:], minlength=5))


def test_of_two_classes_both_are_found():
    # Either label fits the column space of the layer, with opposite signs.
    seen, _, labels = _whole_update(_network([20, 60, 50, 2]), 6, batch_size=6)
    counts = torch.bincount(labels, minlength=2)
    found = restore(seen, "exact")
    assert found.certified
    assert int((counts > 0).sum()) == 2
    assert torch.equal(found.counts, counts)
