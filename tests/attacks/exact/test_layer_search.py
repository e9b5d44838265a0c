"""The search by the layer before the head: more samples than classes."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from exact_batches import endless, restored
from exact_networks import NETWORK, network, whole_update

from labelleak import defenses
from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.errors import MissingKnowledge
from labelleak.loss import Loss
from labelleak.updates import observe
from synthetic import rng


@pytest.mark.parametrize("batch_size", [8, None])
def test_more_samples_than_classes_by_the_layer_before_the_head(batch_size):
    seen, inputs, labels = whole_update(NETWORK, 8, batch_size=batch_size)
    found = restored(seen)
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
    seen, _, _ = whole_update(NETWORK, 8, batch_size=8)
    with pytest.raises(MissingKnowledge, match="samples here"):
        restored(replace(seen, gradients=None))


def test_nothing_is_said_of_more_samples_than_the_layer_can_show():
    """Half of its width: of 70 samples it would show 50, and call the others invisible."""
    for size in (70, None):
        seen, _, _ = whole_update(NETWORK, 70, batch_size=size)
        with pytest.raises(MissingKnowledge, match="samples here"):
            restored(seen)
    # Nor where the layer's rank is low beside the batch: inputs that are nearly alike.
    seen, _, _ = whole_update(NETWORK, 70, batch_size=70, spread=1e-2)
    search = LayerSearch(seen, previous_layers(seen)[0], 70.0, rng(), endless())
    assert search.factors.rank == 0


@pytest.mark.parametrize("strength", [1e-5, 1e-3])
def test_noise_on_the_earlier_layer_is_never_certified(strength):
    seen, _, _ = whole_update(NETWORK, 8, batch_size=8)
    size = float(seen.gradients["2.weight"].square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=strength * size, generator=rng())
    try:
        found = restored(defenses.defend(seen, noise))
    except MissingKnowledge:
        return
    assert not found.certified


def test_a_wrong_head_gradient_is_not_certified_by_the_earlier_layer():
    """Both gradients have to say the same."""
    seen, _, _ = whole_update(NETWORK, 8, batch_size=8)
    weight = seen.gradient.weight.clone()
    weight[0] += 1e-2 * weight[1]
    found = restored(replace(seen, gradient=replace(seen.gradient, weight=weight)))
    assert not found.certified


def test_samples_of_which_half_are_there_twice_are_certain_though_nobody_told_the_batch_size():
    generator = rng(3)
    inputs, labels = torch.randn(6, 20, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])
    inputs, labels = torch.cat([inputs, inputs[:3]]), torch.cat([labels, labels[:3]])
    loss = torch.nn.functional.cross_entropy(NETWORK(inputs), labels)
    found = restored(observe(NETWORK, torch.autograd.grad(loss, list(NETWORK.parameters()))))
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
    found = restored(observe(NETWORK, gradients))
    assert found.invisible == 1
    assert not found.certified
    assert int(found.counts.sum()) == 8
    assert torch.equal(found.certain, torch.bincount(labels[1:], minlength=5))


def test_of_two_classes_both_are_found():
    # Either label fits the column space of the layer, with opposite signs.
    seen, _, labels = whole_update(network([20, 60, 50, 2]), 6, batch_size=6)
    counts = torch.bincount(labels, minlength=2)
    found = restored(seen)
    assert found.certified
    assert int((counts > 0).sum()) == 2
    assert torch.equal(found.counts, counts)


def test_a_label_is_not_certain_where_another_fits_as_well():
    """The head cannot tell its last two classes apart, nor can anyone."""
    model = copy.deepcopy(NETWORK)
    with torch.no_grad():
        for tensor in (model[-1].weight, model[-1].bias):
            tensor[4] = tensor[3]
    seen, _, labels = whole_update(model, 8, batch_size=8)
    search = LayerSearch(seen, previous_layers(seen)[0], 8.0, rng(), endless())
    search.run()
    assert len(search.found) == 8
    sure, found = search.evidence(8.0).sure, search.found.labels
    assert torch.equal(sure, found < 3)
    assert torch.equal(found.clamp_max(3).bincount(minlength=4), labels.clamp_max(3).bincount())


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_samples_are_found_whatever_the_scale_of_the_class_weights(scale):
    """The mean divides by the weights of the batch, whose sum no one has told."""
    weights = scale * torch.linspace(0.5, 2.0, 5)
    seen, _, labels = whole_update(NETWORK, 8, loss=Loss(class_weights=weights), batch_size=8)
    found = restored(seen)
    assert torch.equal(found.embedding_labels.bincount(minlength=5), labels.bincount(minlength=5))
