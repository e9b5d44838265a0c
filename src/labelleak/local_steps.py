"""The optimizer steps of a client's local training: of a simulated client, or a virtual one."""

from collections.abc import Callable, Iterable, Sequence
from threading import Event

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from labelleak.training import LocalTraining

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def make_optimizer(parameters: Iterable[Tensor], training: LocalTraining) -> torch.optim.Optimizer:
    """The optimizer of a recipe, as torch has it, at the rate of the first step.

    Args:
        parameters: What it steps on.
        training: The recipe, with a learning rate.
    """
    kind = training.optimizer or "sgd"
    more = dict(training.options)
    if kind in ("sgd", "rmsprop"):
        more["momentum"] = training.momentum or 0.0
    if kind == "sgd":
        more["nesterov"] = training.nesterov
    rate = rates_of(training, 1)[0]
    made: torch.optim.Optimizer = _OPTIMIZERS[kind](
        parameters,
        lr=rate,
        weight_decay=training.weight_decay,
        **more,  # type: ignore[call-arg]
    )
    return made


def rates_of(training: LocalTraining, steps: int) -> tuple[float, ...]:
    """The learning rate of every step; the recipe has one for all, or one for each."""
    rate = training.learning_rate
    assert rate is not None, "checked by the caller"
    return tuple(rate) if isinstance(rate, Sequence) else (rate,) * steps


def take_steps(
    model: nn.Module,
    inputs: Tensor,
    labels: Shaped[Tensor, "samples *labels"],
    batches: Sequence[Int[Tensor, "*clients batch"]],
    training: LocalTraining,
    loss: Callable[[Tensor, Tensor], Tensor],
    stop: Event | None = None,
) -> None:
    """Train a model in place, in the mode it is in, on one batch after the other.

    Args:
        model: The network; parameters that require no gradient stay as they are.
        inputs: Shape (samples, ...), on the model's device.
        labels: Shape (samples,) or (samples, labels), as the loss takes them.
        batches: Indices of the samples of every step.
        training: The recipe, with a learning rate.
        loss: The loss to minimize, of logits and labels.
        stop: Set by another thread, it ends the training with the next step.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    start = [value.detach().clone() for value in trained] if training.proximal else []
    optimizer = make_optimizer(trained, training)
    for rate, batch in zip(rates_of(training, len(batches)), batches, strict=True):
        if stop is not None and stop.is_set():
            return
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        indices = batch.to(labels.device)
        loss(model(inputs[indices]), labels[indices]).backward()  # type: ignore[no-untyped-call]
        for value, first in zip(trained, start, strict=False):
            if value.grad is not None:
                value.grad.add_(value.detach() - first, alpha=training.proximal)
        optimizer.step()
