"""A small model, and local training on it."""

from copy import deepcopy

import torch
from torch import nn

CLASSES = 5


def batches(number, size=8):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 6, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(number)
    ]


def train(model, steps, learning_rate):
    """Local steps of plain SGD; returns the state dict after them and each step's gradients."""
    model = deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    gradients = []
    for images, labels in batches(steps):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(images), labels).backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
        optimizer.step()
    return model.state_dict(), gradients


def named(model, **changed):
    """A made-up gradient of every parameter, by name."""
    gradients = {
        name: torch.full_like(value, 0.25 + number)
        for number, (name, value) in enumerate(model.named_parameters())
    }
    return {**gradients, **changed}
