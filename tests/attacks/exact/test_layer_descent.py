"""Samples of a layer behind a smooth activation, by descents."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from exact_batches import endless, restored
from exact_networks import update_of

from labelleak import defenses
from labelleak.attacks.exact.layer_descent import (
    LayerFits,
    LayerSpace,
    descend_in_layer,
    draw_layer_starts,
)
from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.logit_gradient import logit_directions
from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.errors import MissingKnowledge
from labelleak.training import LocalTraining
from synthetic import rng


def pooler(activation, classes=2, features=32, width=48):
    torch.manual_seed(0)
    layer, head = torch.nn.Linear(features, width), torch.nn.Linear(width, classes)
    return torch.nn.Sequential(layer, activation, torch.nn.Dropout(0.1), head).eval()


def pooled_update(activation, size, classes=2, **knowledge):
    model, generator = pooler(activation, classes), rng(2)
    inputs = torch.randn(size, 32, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    return update_of(model, inputs, labels, **knowledge), inputs, labels


def space_of(seen, size):
    layer = previous_layers(seen)[0]
    return LayerSpace(LayerSearch(seen, layer, float(size), rng(), endless()).factors, layer)


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.GELU(), torch.nn.Sigmoid()])
@pytest.mark.parametrize(("classes", "size"), [(2, 10), (4, 5)])
def test_every_sample_is_found_and_proven(activation, classes, size):
    seen, inputs, labels = pooled_update(activation, size, classes, batch_size=size)
    found = restored(seen)
    assert found.certified
    assert torch.equal(found.counts, torch.bincount(labels, minlength=classes))
    with torch.no_grad():
        embeddings = activation(seen.model[0](inputs)).double()
    distances = torch.cdist(found.embeddings, embeddings)
    assert (distances.amin(dim=0) < 1e-3 * embeddings.norm(dim=1)).all()
    assert torch.equal(found.embedding_labels[distances.argmin(dim=0)], labels)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_slopes_of_a_descent_are_those_of_autograd(classes):
    seen, _, _ = pooled_update(torch.nn.GELU(), 5, classes, batch_size=5)
    space = space_of(seen, 5)
    points, labels = draw_layer_starts(space, 3, rng())
    fits = LayerFits(space, labels)

    def parts_outside(moves):
        head, outputs = space.layer.head, (points + moves @ space.steps.T) @ space.weight.T
        # d of a sample is the derivative of its loss by the outputs, up to a factor.
        cdf = torch.special.ndtr(outputs)
        slopes = cdf + outputs * torch.exp(-0.5 * outputs**2) / (2.0 * torch.pi) ** 0.5
        logits = torch.nn.functional.gelu(outputs) @ head[:, :-1].T + head[:, -1]
        vectors = slopes * (logit_directions(logits, labels) @ head[:, :-1])
        return space.factors.outside(torch.nn.functional.normalize(vectors, dim=1))

    moves = torch.zeros(3, space.steps.shape[1], dtype=torch.float64)
    residuals = parts_outside(moves)
    jacobian = torch.autograd.functional.jacobian(parts_outside, moves)
    jacobian = torch.stack([jacobian[i, :, i] for i in range(3)])
    evaluated = fits.evaluate(points)
    gram, gradient = fits.normal_equations(points, evaluated)
    assert torch.allclose(evaluated[0], residuals.square().sum(dim=1))
    assert torch.allclose(gram, jacobian.transpose(1, 2) @ jacobian, rtol=1e-5, atol=1e-8)
    assert torch.allclose(
        gradient, (jacobian.transpose(1, 2) @ residuals[:, :, None])[..., 0], atol=1e-7
    )


def test_descents_end_at_samples_and_keep_the_entry_of_the_bias():
    seen, inputs, _ = pooled_update(torch.nn.Tanh(), 6, batch_size=6)
    space = space_of(seen, 6)
    points, labels = draw_layer_starts(space, 32, rng())
    last = space.factors.right[-1]
    assert torch.allclose(points @ last, torch.ones(32).double())
    reached, misfits = descend_in_layer(
        space, points, labels, steps=40, enough=1e-5, clock=endless()
    )
    assert torch.allclose(reached @ last, torch.ones(32).double())
    arrived = (reached @ space.factors.right.T)[misfits < 1e-4][:, :-1]
    assert len(arrived)
    distances = torch.cdist(arrived, inputs.double())
    assert (distances.amin(dim=1) < 1e-2 * inputs.norm(dim=1).mean()).all()


def test_a_wrong_activation_proves_nothing():
    seen, _, _ = pooled_update(torch.nn.Tanh(), 4, batch_size=4)
    for other in (torch.nn.Sigmoid(), torch.nn.GELU()):
        model = torch.nn.Sequential(seen.model[0], other, *seen.model[2:]).eval()
        with pytest.raises(MissingKnowledge):
            restored(replace(seen, model=model))


@pytest.mark.parametrize("told", [5, 7, 9])
def test_a_wrong_batch_size_proves_nothing(told):
    seen, _, _ = pooled_update(torch.nn.Tanh(), 6, batch_size=6)
    try:
        found = restored(replace(seen, training=LocalTraining(batch_size=told)))
    except MissingKnowledge:
        return
    assert not found.certified


@pytest.mark.parametrize("strength", [1e-5, 1e-3])
def test_noise_proves_nothing(strength):
    seen, _, _ = pooled_update(torch.nn.GELU(), 6, batch_size=6)
    size = float(seen.gradients["0.weight"].square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=strength * size, generator=rng())
    try:
        found = restored(defenses.defend(seen, noise))
    except MissingKnowledge:
        return
    assert not found.certified


def test_samples_of_a_layer_that_has_no_spare_equations_are_not_certain():
    """Of 8 samples 16 units leave one equation more than there are unknowns."""
    model, generator = pooler(torch.nn.Tanh(), width=16), rng(4)
    inputs = torch.randn(8, 32, generator=generator)
    seen = update_of(model, inputs, torch.arange(8) % 2, batch_size=8)
    layer = previous_layers(seen)[0]
    search = LayerSearch(seen, layer, 8.0, rng(), endless())
    search.run()
    assert len(search.found)
    assert not bool(search.evidence(8.0).sure.any())
