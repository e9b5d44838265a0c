"""A client's local training: FedSGD, FedAvg with any optimizer of the recipe, FedProx."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from labelleak.local_steps import take_steps
from labelleak.loss import Loss
from labelleak.metrics import counts_of
from labelleak.observation import Observation
from labelleak.training import LocalTraining
from labelleak.updates import observe_update


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What one client's local training left: what it sends, and what it keeps to itself.

    Attributes:
        before: State dict that the client started from.
        after: State dict that it sends back.
        training: How the client trained, with a learning rate for every step.
        loss: The loss it minimized.
        true_counts: Number of samples of each class, or with each label, in the local data that
            took part, int64, shape (classes,). For the caller to score with: no part of an
            observation.

    Examples:
        >>> import torch
        >>> from labelleak import LocalTraining
        >>> from labelleak.federated import train_locally
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> recipe = LocalTraining(learning_rate=0.1)
        >>> update = train_locally(model, inputs, labels, recipe, classes=5)
        >>> update.observe(model).num_instances
        8
    """

    before: dict[str, Tensor] = field(repr=False)
    after: dict[str, Tensor] = field(repr=False)
    training: LocalTraining
    loss: Loss
    true_counts: Int[Tensor, " classes"]

    def observe(self, model: nn.Module | None, **knowledge: Any) -> Observation:
        """What the server sees of it, told how the client trained.

        Args:
            model: The network as the server handed it out.
            **knowledge: Other keyword arguments of `observe_update`, such as ``auxiliary``.

        Returns:
            The observation; its counts are those of the local data that took part.
        """
        told = {"loss": self.loss, "training": self.training, **knowledge}
        return observe_update(model, self.before, self.after, **told)


def train_locally(
    model: nn.Module,
    inputs: Tensor,
    labels: Shaped[Tensor, "samples *labels"],
    training: LocalTraining,
    *,
    classes: int,
    loss: Loss | str = "cross_entropy",
    seed: int = 0,
) -> LocalUpdate:
    """Train a copy of a model on local data, as a client of a federation does.

    Training takes place in the mode (training or evaluation) that the model is in. Every epoch goes
    through the data in another random order, in full batches. What does not fill a last batch is
    left out, the same samples in every epoch. FedSGD is one epoch of one batch.

    Args:
        model: The network that the server handed out; it is left as it is.
        inputs: Local inputs, shape (samples, ...), on the model's device.
        labels: Their classes, int64, shape (samples,); or zeros and ones for every label, shape
            (samples, labels).
        training: The recipe. Without a batch size, all samples make one batch; the steps are
            counted.
        classes: Number of classes, or of labels; 2 of one logit.
        loss: The loss to minimize, or the name of its kind.
        seed: Decides the order of the samples.

    Returns:
        The update.

    Raises:
        ValueError: There is no data, not one label per input, a batch that is larger than the data,
            no learning rate, or another number of steps than the data have.

    Examples:
        >>> import torch
        >>> from labelleak import LocalTraining
        >>> from labelleak.federated import train_locally
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> recipe = LocalTraining(learning_rate=0.1)
        >>> update = train_locally(model, inputs, labels, recipe, classes=5)
        >>> update.training.steps, update.true_counts.tolist()
        (1, [3, 2, 0, 2, 1])
    """
    samples = labels.shape[0]
    if not samples or inputs.shape[:1] != labels.shape[:1]:
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} and labels of shape {tuple(labels.shape)}: "
            "one label per input is needed, and at least one"
        )
    size = samples if training.batch_size is None else training.batch_size
    if size > samples:
        raise ValueError(f"batch size {size} for {samples} samples: it must be 1 to {samples}")
    if training.learning_rate is None:
        raise ValueError("the learning rate is missing: LocalTraining(learning_rate=...)")
    epochs, steps = training.epochs, samples // size * training.epochs
    if training.steps not in (None, steps):
        raise ValueError(
            f"{training.steps} local steps or learning rates, and the data make {steps}: leave the "
            "number out, and give one rate or one per step"
        )
    rates = training.learning_rate
    rates = tuple(rates) if isinstance(rates, Sequence) else (rates,) * steps
    training = replace(
        training,
        optimizer=training.optimizer or "sgd",
        momentum=training.momentum or 0.0,
        learning_rate=rates,
        batch_size=size,
        steps=steps,
    )
    loss = Loss.of(loss)
    generator = torch.Generator().manual_seed(seed)
    used = torch.randperm(samples, generator=generator)[: samples // size * size]
    orders = [used[torch.randperm(len(used), generator=generator)] for _ in range(epochs)]
    local = deepcopy(model)
    before = {name: value.detach().clone() for name, value in local.state_dict().items()}
    batches = torch.cat(orders).reshape(-1, size)
    take_steps(local, inputs, labels, list(batches), training, loss.value)
    return LocalUpdate(
        before=before,
        after={name: value.detach().clone() for name, value in local.state_dict().items()},
        training=training,
        loss=loss,
        true_counts=counts_of(labels[used.to(labels.device)].cpu(), classes),
    )
