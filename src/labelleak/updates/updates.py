"""From a client's gradients, or from the weights before and after, to an observation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labelleak.checks import is_plain, kind_of, whole_number
from labelleak.errors import InvalidObservation
from labelleak.numerics import machine_epsilon, root_mean_square
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.updates.heads import by_bare_name, named_head, parameter_name, strip_wrappers

# No gradient is so near to the weights that it belongs to, relative to their size.
_NEAR = 0.5

StateDict = Mapping[str, Tensor]

# What BatchNorm counts is in the state dict, too, and no step of the optimiser changed it.
_RUNNING = ("running_mean", "running_var")


class Moves(NamedTuple):
    """How local steps moved the weights.

    Attributes:
        scale: How far the mean gradient moved them, the sum of `step_sizes`.
        place: Where they were on the way, on average over the steps: 0 for before, 1 for after.
        weight_decay: Of the client's SGD.
        proximal: FedProx's factor.
    """

    scale: float
    place: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0

    @classmethod
    def by(
        cls, sizes: Sequence[float], weight_decay: float = 0.0, proximal: float = 0.0
    ) -> "Moves":
        """Of steps of these sizes, see `step_sizes`.

        Raises:
            InvalidObservation: The weight decay or the proximal term is negative or not finite.
        """
        for what, value in (("weight decay", weight_decay), ("proximal term", proximal)):
            if not 0.0 <= value < math.inf:
                raise InvalidObservation(f"{what} {value}: it must be at least 0 and finite")
        scale = math.fsum(sizes)
        place = (1.0 - math.fsum((size / scale) ** 2 for size in sizes)) / 2
        return cls(scale, place, weight_decay, proximal)


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
        The observation. It shares memory with the given tensors. Names are without the prefix that
        a wrapper (DataParallel, compile, Opacus) puts on all of them, and the model is the one
        inside it.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: The head's gradient is missing or cannot be right.
    """
    parameters = _parameters(model)
    if not isinstance(gradients, Mapping):
        if not isinstance(gradients, Sequence):
            raise InvalidObservation(
                f"gradients are a {type(gradients).__name__}: pass a dict by name, or a list with "
                "one entry per parameter (list(...) makes one)"
            )
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
    sent = by_bare_name(
        {name: value.detach() for name, value in gradients.items() if value is not None}
    )
    parameters = by_bare_name(parameters)
    layer = named_head({name: value.shape for name, value in parameters.items()}, head)
    return observe_head(
        parameters,
        sent,
        layer,
        model=inside_wrappers(model) if isinstance(model, nn.Module) else None,
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
        integers are left out: the optimiser did not change them. A bias of the head that is not
        among the weights afterwards counts as not sent. Names are without a wrapper's prefix, as
        those of `observe`.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: A value is impossible, or the two state dicts do not fit.
    """
    sizes = step_sizes(learning_rate, local_steps, momentum)
    moves = Moves.by(sizes, weight_decay, proximal)
    before, after = by_bare_name(_parameters(before)), by_bare_name(_parameters(after))
    layer = named_head({name: value.shape for name, value in before.items()}, head)
    model = None if model is None else inside_wrappers(model)
    buffers = set() if model is None else {name for name, _ in model.named_buffers()}
    gradients = {}
    for name, start in before.items():
        end = after.get(name)
        if name in buffers or name.endswith(_RUNNING) or end is None or end.shape != start.shape:
            continue
        if is_plain(start) and is_plain(end):
            gradients[name] = _mean_gradient(name, start, end, moves)
    return observe_head_update(
        before,
        after,
        layer,
        moves,
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
        rates = [learning_rate] * whole_number("local steps", local_steps)
    if not 0.0 <= momentum < 1.0:
        raise InvalidObservation(f"momentum {momentum}: it must be at least 0 and below 1")
    sizes: list[float] = []
    later = 0.0
    for rate in reversed(rates):
        check_schedule(rate, len(rates))
        later = rate + momentum * later
        sizes.append(later)
    return tuple(reversed(sizes))


def observe_head(
    parameters: StateDict, sent: StateDict, layer: str, **knowledge: Any
) -> Observation:
    """The observation of the head of that name and its gradient.

    Raises:
        InvalidObservation: The gradient was not sent, or a value is impossible; or these are
            weights.
    """
    head, gradient = head_of(parameters, layer), _gradient_of(sent, layer)
    observation = Observation(head=head, gradient=gradient, **knowledge)
    # A copy of a language model's head would be large, and some rows tell.
    some = slice(0, 1024)
    change = root_mean_square(gradient.weight[some] - head.weight[some])
    if change < _NEAR * root_mean_square(head.weight[some]):
        raise InvalidObservation(
            f"{parameter_name(layer, 'weight')} of the update is close to that of the model: these "
            "are weights after training, and no gradients; give the learning rate of the local "
            "steps (observe_update(..., learning_rate=...), --learning-rate)"
        )
    return observation


def observe_head_update(
    before: StateDict,
    after: StateDict,
    layer: str,
    moves: Moves,
    /,
    **knowledge: Any,
) -> Observation:
    """The observation of the head of that name, from its weights before and after the steps.

    Raises:
        InvalidObservation: The two do not fit, or a value is impossible.
    """
    weight, bias = parameter_name(layer, "weight"), parameter_name(layer, "bias")
    gradients = {}
    for name in (weight, bias):
        start, end = before.get(name), after.get(name)
        if start is None or (end is None and name == bias):
            continue
        if end is None or end.shape != start.shape:
            raise InvalidObservation(
                f"{name} is not the same tensor before and after: names or shapes do not match"
            )
        gradients[name] = _mean_gradient(name, start, end, moves)
    gradient = _gradient_of(gradients, layer)
    # The coarser of the two formats; zeros to begin with would fit in any.
    epsilon = max(torch.finfo(before[weight].dtype).eps, machine_epsilon(after[weight]))
    # The client rounded its weights, by at most epsilon / sqrt(12) of their size on average, and
    # its gradient before that.
    rounding = epsilon * (
        4 * root_mean_square(gradient.weight) + 0.3 * root_mean_square(before[weight]) / moves.scale
    )
    return Observation(
        head=head_of(before, layer),
        gradient=replace(gradient, rounding=rounding),
        **knowledge,
    )


def check_schedule(learning_rate: float, local_steps: int) -> None:
    """Refuse a learning rate or a number of steps by which no update can be put to scale.

    Raises:
        InvalidObservation: One of them is not positive and finite.
    """
    if not 0.0 < learning_rate < float("inf"):
        raise InvalidObservation(f"learning rate {learning_rate}: it must be positive and finite")
    whole_number("local steps", local_steps)


def _mean_gradient(name: str, before: Tensor, after: Tensor, moves: Moves) -> Tensor:
    """The mean gradient that led from one tensor to the other, float64."""
    for when, tensor in (("before", before), ("after", after)):
        if not is_plain(tensor):
            raise InvalidObservation(
                f"{name} {when} the steps is {kind_of(tensor)}: a plain tensor of floating-point "
                "numbers is needed (16 bits or more)"
            )
    start, end = (tensor.detach().to(before.device, torch.float64) for tensor in (before, after))
    gradient = (start - end) / moves.scale
    if moves.weight_decay or moves.proximal:
        way = moves.place * (start - end)
        gradient -= moves.weight_decay * (start - way) - moves.proximal * way
    return gradient


def head_of(parameters: StateDict, layer: str) -> Head:
    """The head of that name, with its bias where there is one."""
    bias = parameters.get(parameter_name(layer, "bias"))
    return Head(
        weight=parameters[parameter_name(layer, "weight")].detach(),
        bias=None if bias is None else bias.detach(),
        name=layer,
    )


def _gradient_of(gradients: StateDict, layer: str) -> HeadGradient:
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


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The model that a wrapper holds, in which names are as `by_bare_name` makes them."""
    names = [name for name, _ in model.named_parameters()]
    inside = model
    for name, bare in list(strip_wrappers(names).items())[:1]:
        for part in name.removesuffix(bare).split(".")[:-1]:
            inside = inside.get_submodule(part)
    return inside
