"""A client whose batch is sought for: real digits, and the gradient that a network has for them."""

import torch
from torch import nn

import labelleak
from labelleak.inversion import assess, invert, match
from labelleak.inversion.task import Task
from labelleak.lab.networks import build

SHAPE = (1, 28, 28)


def observed(model, inputs, labels, **knowledge):
    """What the server sees of one step in evaluation mode, with all gradients."""
    loss = nn.functional.cross_entropy(model.eval()(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return labelleak.observe(model, gradients, batch_size=len(labels), **knowledge)


class Client:
    """A batch of real digits, and what the server sees of it."""

    def __init__(self, digits, indices, network="fcn-2", **options):
        self.indices = torch.tensor(indices)
        self.inputs, self.labels = digits.batch(self.indices)
        self.truth = digits.images[self.indices] / 255
        self.model = build(network, classes=10, image_shape=SHAPE, seed=13, **options)
        self.seen = observed(self.model, self.inputs, self.labels)
        self.normalization = {"mean": digits.mean, "std": digits.std}

    def task(self):
        return Task(self.seen, SHAPE, **self.normalization)

    def invert(self, method, **options):
        return invert(self.seen, method, image_shape=SHAPE, **self.normalization, **options)

    def psnr(self, found):
        return assess(found.images[match(found.images, self.truth)], self.truth).mean("psnr")
