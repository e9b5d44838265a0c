"""A loss of logits over a temperature, read as the plain one of a head with smaller weights."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from labelleak.observation import Observation


def at_unit_temperature(observation: Observation) -> Observation:
    """The same update of a head that puts out its logits over the temperature T already.

    The softmax of ``z / T`` is that of a head with ``W / T`` and ``b / T``, by which the gradient
    is T times larger. Steps move such a head 1 / T^2 as far for each unit of its gradient.

    Args:
        observation: What the server sees; as it is if T is 1.

    Returns:
        One whose loss has no temperature. The model shares all tensors but those of the head.
    """
    loss, head = observation.loss, observation.head
    factor = loss.temperature
    if factor == 1.0:
        return observation
    gradient, training = observation.gradient, observation.training
    rates = training.learning_rate
    if rates is not None:
        square = factor**2
        rates = tuple(r / square for r in rates) if isinstance(rates, Sequence) else rates / square
    return replace(
        observation,
        head=replace(
            head,
            weight=head.weight / factor,
            bias=None if head.bias is None else head.bias / factor,
        ),
        gradient=replace(
            gradient,
            weight=gradient.weight * factor,
            bias=None if gradient.bias is None else gradient.bias * factor,
            rounding=gradient.rounding * factor,
        ),
        loss=replace(loss, temperature=1.0),
        training=replace(training, learning_rate=rates),
        model=None
        if observation.model is None or head.name is None
        else _cooled(observation.model, head.name, factor),
        gradients=_times(observation.gradients, head.name, factor),
        after=_times(observation.after, head.name, 1.0 / factor),
    )


def _times(
    state: Mapping[str, Tensor] | None, layer: str | None, factor: float
) -> dict[str, Tensor] | None:
    if state is None:
        return None
    names = {f"{layer}.{kind}" if layer else kind for kind in ("weight", "bias")}
    return {name: value * factor if name in names else value for name, value in state.items()}


def _cooled(model: nn.Module, layer: str, factor: float) -> nn.Module:
    """The network with the head's weights over the temperature."""
    head = model.get_submodule(layer)
    own = {id(value) for value in head.parameters()}
    tensors = [value for value in (*model.parameters(), *model.buffers()) if id(value) not in own]
    copied = deepcopy(model, {id(value): value for value in tensors})
    with torch.no_grad():
        for value in copied.get_submodule(layer).parameters():
            value.div_(factor)
    return copied
