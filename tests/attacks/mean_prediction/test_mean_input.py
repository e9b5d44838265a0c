"""The mean input of a layer, against that of the batch itself."""

from dataclasses import replace

import torch
from torch import nn

from labelleak.attacks.mean_prediction.mean_input import gradient_of_layer, mean_input
from labelleak.attacks.mean_prediction.mean_logits import mean_logits
from labelleak.updates import capture, whole_gradient
from synthetic import rng


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10)).double().eval()


def inputs_about(center, number, generator):
    return center + 0.5 * torch.randn(number, 20, generator=generator, dtype=torch.float64)


def test_it_is_nearer_than_least_squares_and_knows_how_near():
    squares = {"plain": 0.0, "generalized": 0.0, "claimed": 0.0}
    for seed in range(20):
        generator, model = rng(seed), network(seed)
        center = torch.randn(20, generator=generator, dtype=torch.float64)
        inputs = inputs_about(center, 64, generator)
        labels = torch.randint(10, (64,), generator=generator)
        gradients = whole_gradient(model, [(inputs, labels)])
        seen = replace(capture(model, inputs, labels), gradients=gradients)
        gradient = gradient_of_layer(seen, "0", model[0], needed=True)
        typical = inputs_about(center, 200, generator)
        found = mean_input(seen, model, model[0], gradient, mean_logits(seen), typical)
        mean = inputs.mean(dim=0)
        squares["plain"] += float((gradient.simple_mean(0.0) - mean).square().mean())
        squares["generalized"] += float((found.values - mean).square().mean())
        squares["claimed"] += float(found.errors.square().mean())
    assert squares["generalized"] < 0.7 * squares["plain"]
    assert 0.3 < squares["generalized"] / squares["claimed"] < 3.0
