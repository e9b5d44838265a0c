"""What virtual clients train on: their counts, samples and batches."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.observation import Auxiliary, Observation

Samples = Callable[[Int[Tensor, " classes"], int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws inputs and labels with these counts, of one of two pools that share no sample."""


class Drawn(NamedTuple):
    """What one virtual client trains on.

    Attributes:
        counts: Number of its samples of each class.
        samples: Where it has them from.
        pool: Which of the two pools they are of, 0 or 1.
        seed: Of samples, order and dropout.
    """

    counts: Int[Tensor, " classes"]
    samples: Samples
    pool: int
    seed: int


def auxiliary_samples(auxiliary: Auxiliary, classes: int) -> Samples:
    """Draws from the server's own with replacement, every other one of a class in a pool.

    What is drawn first of a class is the same whatever the counts are.
    """
    by_class = [(auxiliary.labels == label).nonzero()[:, 0].cpu() for label in range(classes)]

    def draw(
        counts: Int[Tensor, " classes"], pool: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        chosen, total = [], int(counts.sum())
        for own, number in zip(by_class, counts.tolist(), strict=True):
            mine = own[pool::2] if len(own) > 1 else own
            chosen.append(mine[torch.randint(len(mine), (total,), generator=generator)[:number]])
        places = torch.cat(chosen).to(auxiliary.labels.device)
        return auxiliary.inputs[places.to(auxiliary.inputs.device)], auxiliary.labels[places]

    return draw


def drawn_counts(
    center: np.ndarray, concentration: float, total: int, source: np.random.Generator
) -> Int[Tensor, " classes"]:
    """Counts of one virtual client: multinomial, of shares from a Dirichlet about the center.

    Args:
        center: Positive, shape (classes,), summing to one.
        concentration: Sum of the Dirichlet's parameters.
        total: Number of samples.
        source: Of random numbers.
    """
    shares = source.dirichlet(np.maximum(concentration * center, 1e-3))
    return torch.from_numpy(source.multinomial(total, shares / shares.sum()))


def canonical_order(observation: Observation) -> Int[Tensor, " classes"]:
    """The classes by their update: what is drawn does not depend on how classes are numbered."""
    gradient = observation.gradient
    key = gradient.weight.double().norm(dim=1) if gradient.bias is None else gradient.bias.double()
    return key.cpu().argsort(stable=True)


def batches_of(
    observation: Observation, labels: Int[Tensor, " samples"], generator: torch.Generator
) -> list[Tensor]:
    """Samples of every step: each epoch in another order, a smaller last one if steps allow it.

    The first samples of a class have the same places in the order whatever the counts are.
    """
    size, steps = observation.batch_size, observation.local_steps
    assert size is not None, "a need of the attack"
    each = steps // observation.training.epochs
    batches: list[Tensor] = []
    while len(batches) < steps:
        places = torch.empty(len(labels))
        for label in range(observation.classes):
            own = labels == label
            places[own] = torch.rand(len(labels), generator=generator)[: int(own.sum())]
        order = places.argsort(stable=True)
        batches += torch.split(order, size)[: min(each, steps - len(batches))]
    return batches
