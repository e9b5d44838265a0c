"""A client's local training: FedSGD, FedAvg with momentum and weight decay, FedProx."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from labelleak.observation import Observation
from labelleak.updates import observe_update


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What one client's local training left: what it sends, and what it keeps to itself.

    Attributes:
        before: State dict that the client started from.
        after: State dict that it sends back.
        learning_rates: Learning rate of every step.
        batch_size: Number of samples in one step.
        epochs: How often each sample took part.
        momentum: Of SGD.
        weight_decay: Of SGD.
        proximal: FedProx's factor mu.
        true_counts: Number of samples of each class in the local data that took part, int64, shape
            (classes,). For the caller to score with: no part of an observation.
    """

    before: dict[str, Tensor] = field(repr=False)
    after: dict[str, Tensor] = field(repr=False)
    learning_rates: tuple[float, ...]
    batch_size: int
    epochs: int
    momentum: float
    weight_decay: float
    proximal: float
    true_counts: Int[Tensor, " classes"]

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.learning_rates)

    def observe(self, model: nn.Module | None, **knowledge: Any) -> Observation:
        """What the server sees of it, told how the client trained.

        Args:
            model: The network as the server handed it out.
            **knowledge: Other fields of `Observation`, such as ``auxiliary``.

        Returns:
            The observation; its counts are those of the local data that took part.
        """
        return observe_update(
            model,
            self.before,
            self.after,
            learning_rate=self.learning_rates,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            proximal=self.proximal,
            **{"batch_size": self.batch_size, "local_epochs": self.epochs, **knowledge},
        )


def train_locally(
    model: nn.Module,
    inputs: Tensor,
    labels: Int[Tensor, " samples"],
    *,
    classes: int,
    learning_rate: float | Sequence[float],
    batch_size: int | None = None,
    epochs: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> LocalUpdate:
    """Train a copy of a model on local data, as a client of a federation does.

    SGD on the mean cross-entropy, in the mode (training or evaluation) that the model is in. Every
    epoch goes through the data in another random order, in full batches. What does not fill a last
    batch is left out, the same samples in every epoch. FedSGD is one epoch of one batch.

    Args:
        model: The network that the server handed out; it is left as it is.
        inputs: Local inputs, shape (samples, ...), on the model's device.
        labels: Their classes, int64, shape (samples,).
        classes: Number of classes.
        learning_rate: One for all steps, or one for each.
        batch_size: Samples in one step; None for all of them.
        epochs: Number of passes over the data.
        momentum: Of SGD, without dampening.
        weight_decay: Of SGD, on all parameters.
        proximal: FedProx's factor mu of ``mu / 2 * |weights - before|^2``; 0 for FedAvg.
        label_smoothing: As of ``torch.nn.CrossEntropyLoss``.
        seed: Decides the order of the samples.

    Returns:
        The update.

    Raises:
        ValueError: There is no data, not one label per input, less than one epoch, a batch that is
            larger than the data, or another number of learning rates than of steps.
    """
    samples = labels.shape[0]
    if not samples or inputs.shape[:1] != labels.shape:
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} and labels of shape {tuple(labels.shape)}: "
            "one label per input is needed, and at least one"
        )
    size = samples if batch_size is None else batch_size
    if not 1 <= size <= samples:
        raise ValueError(f"batch size {size} for {samples} samples: it must be 1 to {samples}")
    if epochs < 1:
        raise ValueError(f"{epochs} epochs: there must be at least 1")
    steps = samples // size * epochs
    rates = list(learning_rate) if isinstance(learning_rate, Sequence) else [learning_rate] * steps
    if len(rates) != steps:
        raise ValueError(f"{len(rates)} learning rates for {steps} local steps: one per step")
    generator = torch.Generator().manual_seed(seed)
    used = torch.randperm(samples, generator=generator)[: samples // size * size]
    orders = [used[torch.randperm(len(used), generator=generator)] for _ in range(epochs)]
    local = deepcopy(model)
    before = {name: value.detach().clone() for name, value in local.state_dict().items()}
    start = [value.detach().clone() for value in local.parameters()]
    optimizer = torch.optim.SGD(
        local.parameters(), lr=rates[0], momentum=momentum, weight_decay=weight_decay
    )
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    batches = torch.cat(orders).reshape(-1, size)
    for rate, batch in zip(rates, batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        indices = batch.to(labels.device)
        loss(local(inputs[indices]), labels[indices]).backward()
        if proximal:
            for value, first in zip(local.parameters(), start, strict=True):
                if value.grad is not None:
                    value.grad.add_(value.detach() - first, alpha=proximal)
        optimizer.step()
    return LocalUpdate(
        before=before,
        after={name: value.detach().clone() for name, value in local.state_dict().items()},
        learning_rates=tuple(rates),
        batch_size=size,
        epochs=epochs,
        momentum=momentum,
        weight_decay=weight_decay,
        proximal=proximal,
        true_counts=torch.bincount(labels[used.to(labels.device)].cpu(), minlength=classes),
    )
