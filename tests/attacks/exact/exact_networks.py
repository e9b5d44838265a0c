"""Fully connected networks, and what a server sees of their whole update."""

from itertools import pairwise

import torch

from labelleak.updates import observe
from synthetic import rng


def network(widths, seed=0):
    """Fully connected, ReLU between the layers; the last is the head."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def whole_update(model, size, seed=0, spread=1.0, **knowledge):
    generator = rng(seed)
    inputs = torch.randn(size, model[0].in_features, generator=generator)
    inputs = inputs[:1] + spread * (inputs - inputs[:1])
    labels = torch.randint(model[-1].out_features, (size,), generator=generator)
    return update_of(model, inputs, labels, **knowledge), inputs, labels


def update_of(model, inputs, labels, **knowledge):
    """What a server sees of one step on these samples."""
    weights = knowledge["loss"].class_weights if "loss" in knowledge else None
    loss = torch.nn.functional.cross_entropy(model(inputs), labels, weight=weights)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return observe(model, dict(zip(names, gradients, strict=True)), **knowledge)


NETWORK = network((20, 120, 100, 5))
