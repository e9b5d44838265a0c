"""From a client's gradients, or from the weights before and after, to an observation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labelleak.capture.heads import named_head, parameter_name
from labelleak.errors import InvalidObservation
from labelleak.observation import Head, HeadGradient, Observation, root_mean_square

StateDict = Mapping[str, Tensor]

# What BatchNorm counts is in the state dict, too, and no step of the optimiser changed it.
_RUNNING = ("running_mean", "running_var")


def observe(
    model: nn.Module | StateDict,
    gradients: Mapping[str, Tensor | None] | Sequence[Tensor | None],
    *,
    head: str | None = None,
    **knowledge: Any,
) -> Observation:
    """What the server sees of a client that sends gradients.

    Args:
        model: The model before the step, or its state dict.
        gradients: One gradient per parameter: by name, or in the order of ``model.parameters()``.
            Entries that are None (frozen parameters) count as not sent.
        head: Name of the final linear layer; None to find it.
        **knowledge: Whatever else the server knows: the other fields of `Observation`
            (``batch_size``, ``reduction``, ``label_smoothing``, ...).

    Returns:
        The observation. It shares memory with the given tensors.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: The head's gradient is missing or cannot be right.
    """
    parameters = _parameters(model)
    if not isinstance(gradients, Mapping):
        if not isinstance(model, nn.Module):
            raise InvalidObservation(
                "gradients in a list are matched by the order of model.parameters(): pass the "
                "model itself, or the gradients by name"
            )
        if len(gradients) != len(parameters):
            raise InvalidObservation(
                f"{len(gradients)} gradients for {len(parameters)} parameters: pass one per "
                "parameter in the order of model.parameters(), or a dict by name"
            )
        gradients = dict(zip(parameters, gradients, strict=True))
    sent = {name: value.detach() for name, value in gradients.items() if value is not None}
    layer = named_head({name: value.shape for name, value in parameters.items()}, head)
    return Observation(
        head=head_of(parameters, layer),
        gradient=gradient_of(sent, layer),
        model=model if isinstance(model, nn.Module) else None,
        gradients=sent,
        **knowledge,
    )


def observe_update(
    model: nn.Module | None,
    before: StateDict,
    after: StateDict,
    *,
    learning_rate: float | Sequence[float],
    local_steps: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
    head: str | None = None,
    **knowledge: Any,
) -> Observation:
    """What the server sees of a client that sends weights after local steps of SGD.

    ``(before - after) / (learning_rate * local_steps)`` is the mean of the steps' gradients. With a
    schedule of learning rates or momentum it is a weighted mean, and the divisor the sum of
    `step_sizes`. What weight decay and FedProx's proximal term added is taken off, as if the
    weights had moved evenly from the one model to the other; for one step that is exact.

    Args:
        model: The network, for attacks that use all of it; None when only weights are at hand.
        before: State dict that the server handed out.
        after: State dict that the client sent back.
        learning_rate: Learning rate of the local steps, positive; or one for each step.
        local_steps: Number of local steps, at least 1; with one rate for each they count them.
        momentum: Of the client's SGD (without dampening), in [0, 1).
        weight_decay: Of the client's SGD, at least 0.
        proximal: FedProx's factor mu of ``mu / 2 * |weights - before|^2``, at least 0.
        head: Name of the final linear layer; None to find it.
        **knowledge: Other fields of `Observation`; ``batch_size`` is that of one local step.

    Returns:
        The observation; its gradients are float64. BatchNorm's running statistics, buffers and
        integers are left out: the optimiser did not change them.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: A value is impossible, or the two state dicts do not fit.
    """
    sizes = step_sizes(learning_rate, local_steps, momentum)
    for what, value in (("weight decay", weight_decay), ("proximal term", proximal)):
        if not 0.0 <= value < math.inf:
            raise InvalidObservation(f"{what} {value}: it must be at least 0 and finite")
    before, after = _parameters(before), _parameters(after)
    layer = named_head({name: value.shape for name, value in before.items()}, head)
    scale = math.fsum(sizes)
    # Where on the way the weights were when the gradients were taken, 0 for before, on average.
    place = (1.0 - math.fsum((size / scale) ** 2 for size in sizes)) / 2
    buffers = set() if model is None else {name for name, _ in model.named_buffers()}
    gradients = {}
    for name, start in before.items():
        end = after.get(name)
        learned = name not in buffers and not name.endswith(_RUNNING)
        if end is not None and end.shape == start.shape and start.is_floating_point() and learned:
            gradients[name] = difference(start, end, scale)
            if weight_decay or proximal:
                moved = gradients[name] * scale
                pull = weight_decay * (start.detach().double() - place * moved)
                gradients[name] -= pull - proximal * place * moved
    missing = [
        name
        for kind in ("weight", "bias")
        if (name := parameter_name(layer, kind)) in before and name not in gradients
    ]
    if missing:
        raise InvalidObservation(
            f"{missing[0]} is not the same tensor before and after: names or shapes do not match"
        )
    return Observation(
        head=head_of(before, layer),
        gradient=update_gradient(before, gradients, layer, scale),
        local_steps=len(sizes),
        learning_rates=sizes,
        model=model,
        gradients=gradients,
        after=after,
        **knowledge,
    )


def step_sizes(
    learning_rate: float | Sequence[float], local_steps: int = 1, momentum: float = 0.0
) -> tuple[float, ...]:
    """How far each step's gradient moves the weights in all the steps together.

    Without momentum that is the step's learning rate. With momentum a gradient goes on to move the
    weights in later steps: ``sum over s >= t of learning_rate[s] * momentum ** (s - t)``.

    Args:
        learning_rate: One for all steps, or one for each.
        local_steps: Number of steps; counted where there is a rate for each.
        momentum: In [0, 1).

    Returns:
        One number per step.

    Raises:
        InvalidObservation: A value is impossible, or the number of rates is not that of the steps.
    """
    if isinstance(learning_rate, Sequence):
        if local_steps not in (1, len(learning_rate)) or not learning_rate:
            raise InvalidObservation(
                f"{len(learning_rate)} learning rates for {local_steps} local steps: one per step"
            )
        rates = list(learning_rate)
    else:
        check_schedule(learning_rate, local_steps)
        rates = [learning_rate] * local_steps
    if not 0.0 <= momentum < 1.0:
        raise InvalidObservation(f"momentum {momentum}: it must be at least 0 and below 1")
    sizes: list[float] = []
    later = 0.0
    for rate in reversed(rates):
        check_schedule(rate, len(rates))
        later = rate + momentum * later
        sizes.append(later)
    return tuple(reversed(sizes))


def check_schedule(learning_rate: float, local_steps: int) -> None:
    """Refuse a learning rate or a number of steps by which no update can be put to scale.

    Raises:
        InvalidObservation: One of them is not positive and finite.
    """
    if not 0.0 < learning_rate < float("inf"):
        raise InvalidObservation(f"learning rate {learning_rate}: it must be positive and finite")
    if local_steps < 1:
        raise InvalidObservation(f"{local_steps} local steps: there must be at least 1")


def difference(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """The mean gradient that led from one tensor to the other, float64."""
    return (before.detach().double() - after.detach().double()) / scale


def update_gradient(
    before: StateDict, gradients: StateDict, layer: str, scale: float
) -> HeadGradient:
    """The head's gradient from a difference of weights, with the rounding of those weights."""
    gradient = gradient_of(gradients, layer)
    start = before[parameter_name(layer, "weight")]
    epsilon = torch.finfo(start.dtype).eps
    # The client computed its gradient and rounded its weights in the precision it sent.
    rounding = epsilon * (
        4 * root_mean_square(gradient.weight) + 0.5 * root_mean_square(start) / scale
    )
    return replace(gradient, rounding=rounding)


def head_of(parameters: StateDict, layer: str) -> Head:
    """The head of that name, with its bias where there is one."""
    bias = parameters.get(parameter_name(layer, "bias"))
    return Head(
        weight=parameters[parameter_name(layer, "weight")].detach(),
        bias=None if bias is None else bias.detach(),
        name=layer,
    )


def gradient_of(gradients: StateDict, layer: str) -> HeadGradient:
    """The gradient of the head of that name.

    Raises:
        InvalidObservation: It was not sent.
    """
    weight = gradients.get(parameter_name(layer, "weight"))
    if weight is None:
        raise InvalidObservation(
            f"there is no gradient for {parameter_name(layer, 'weight')}: names do not match, or "
            "the final layer is frozen; the update holds "
            + (", ".join(list(gradients)[-4:]) or "nothing")
        )
    return HeadGradient(weight=weight, bias=gradients.get(parameter_name(layer, "bias")))


def _parameters(model: nn.Module | StateDict) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return {name: value.detach() for name, value in model.named_parameters()}
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}
