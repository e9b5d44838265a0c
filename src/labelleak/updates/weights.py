"""From the weights before and after a client's local training to an observation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from labelleak.checks import is_plain, kind_of
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.loss import Loss
from labelleak.numerics import machine_epsilon, root_mean_square
from labelleak.observation import Auxiliary, Observation
from labelleak.training import LocalTraining
from labelleak.updates.ends import Accepted
from labelleak.updates.heads import by_bare_name, parameter_name
from labelleak.updates.matching import Held, find_pair
from labelleak.updates.parameters import (
    StateDict,
    Values,
    flat_tensors,
    gradient_of,
    head_of,
    in_order,
    inside_wrappers,
    is_one_logit,
    observed_fields,
    turned,
)

# What BatchNorm counts is in the state dict, too, and no step of the optimizer changed it.
_RUNNING = ("running_mean", "running_var")


def observe_update(
    model: nn.Module | None,
    before: Values,
    after: Values,
    *,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    loss: Loss | str = "cross_entropy",
    training: LocalTraining | None = None,
    instances: int | None = None,
    present_classes: Integer[Tensor, " present"] | None = None,
    input_shape: tuple[int, ...] | None = None,
    auxiliary: Auxiliary | None = None,
    head: str | None = None,
) -> Observation:
    """What the server sees of a client that sends weights after local steps of SGD.

    The change of the weights, divided by the `LocalTraining.reach` of the steps, is the mean of the
    steps' gradients. With a schedule of learning rates or momentum it is a weighted mean. What
    weight decay and FedProx's proximal term added is taken off, as if the weights had moved evenly
    from the one model to the other; for one step that is exact.

    Args:
        model: The network, for attacks that use all of it; None when only weights are at hand.
        before: State dict that the server handed out: tensors or arrays of NumPy, by name; or in a
            list, in the order of the model's state dict.
        after: What the client sent back, the same way.
        learning_rate: Learning rate of one plain step of SGD, positive; anything else is told by
            `training`.
        batch_size: Number of samples K of that step; None where nobody told the server.
        loss: The client's loss, or the name of its kind. A head of one logit, which needs one with
            a sigmoid, is read as two classes, 0 and 1.
        training: How the client trained, in place of `learning_rate` and `batch_size`.
        instances: Number of different samples, see `Observation`, as are the following.
        present_classes: Classes known to be in the batch, int64, shape (present,).
        input_shape: Shape of one input of the model.
        auxiliary: Labeled samples of the server's own.
        head: Name of the final linear layer; None to find it.

    Returns:
        The observation; its gradients are float64. BatchNorm's running statistics, buffers and
        integers are left out: the optimizer did not change them. A bias of the head that is not
        among the weights afterward counts as not sent. Names are without a wrapper's prefix, as
        those of `observe`.

    Raises:
        AmbiguousHead: The head is not clear.
        MissingKnowledge: The learning rate or the number of steps is not known.
        InvalidObservation: A value is impossible, or the two state dicts do not fit.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> before = {name: value.clone() for name, value in model.state_dict().items()}
        >>> torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        >>> torch.optim.SGD(model.parameters(), lr=0.1).step()
        >>> after = model.state_dict()
        >>> seen = labelleak.observe_update(model, before, after, learning_rate=0.1, batch_size=8)
        >>> labelleak.restore(seen).counts.tolist()
        [3, 2, 0, 2, 1]
    """
    training = _recipe(learning_rate, batch_size, training).resolved(instances)
    start, end = _states(model, before, after)
    loss = Loss.of(loss)
    accepted = Accepted.by(loss)
    pair = find_pair(Held(start), Held(end), head, changed=_differ, accepted=accepted)
    end = pair.by_model_names(end, start)
    model = None if model is None else inside_wrappers(model)
    buffers = set() if model is None else {name for name, _ in model.named_buffers()}
    gradients = {}
    for name, value in start.items():
        moved = end.get(name)
        if name in buffers or name.endswith(_RUNNING) or moved is None:
            continue
        if moved.shape == value.shape and is_plain(value) and is_plain(moved):
            gradients[name] = _mean_gradient(name, value, moved, training)
    return observe_head_update(
        start,
        end,
        pair.layer,
        training,
        loss=loss,
        instances=instances,
        present_classes=present_classes,
        model=model,
        gradients=gradients,
        after=end,
        input_shape=input_shape,
        auxiliary=auxiliary,
    )


def _states(
    model: nn.Module | None, before: Values, after: Values
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both state dicts by bare name as torch has them; lists go by the order of the other names.

    Raises:
        InvalidObservation: A list has not one tensor for each of the model.
    """
    named = next((state for state in (before, after) if isinstance(state, Mapping)), None)
    if model is not None and not isinstance(before, Mapping):
        named = model.state_dict()
    shapes = named and {name: value.shape for name, value in flat_tensors(named).items()}
    start, end = (
        by_bare_name(
            turned(flat_tensors(state) if isinstance(state, Mapping) else in_order(state, shapes))
        )
        for state in (before, after)
    )
    return start, end


def _differ(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors of one shape hold different numbers."""
    return not torch.equal(before.to(after), after)


def observe_head_update(
    before: StateDict,
    after: StateDict,
    layer: str,
    training: LocalTraining,
    /,
    **fields: Any,
) -> Observation:
    """The observation of the head of that name, from its weights before and after the steps.

    Raises:
        MissingKnowledge: The learning rate is not known.
        InvalidObservation: The two do not fit, or a value is impossible.
    """
    reach, head = _reach_of(training), head_of(before, layer)
    has_bias = head.bias is not None and parameter_name(layer, "bias") in after
    gradients = {}
    for kind in ("weight", "bias"):
        name = parameter_name(layer, kind)
        start, end = before.get(name), after.get(name)
        if start is None or (end is None and (kind == "bias" or has_bias)):
            continue
        if end is None or end.shape != start.shape:
            raise InvalidObservation(
                f"{name} is not the same tensor before and after: names or shapes do not match"
            )
        gradients[name] = _mean_gradient(name, start, end, training)
    one_logit = is_one_logit(before, layer)
    gradient = gradient_of(gradients, head, one_logit=one_logit)
    # The coarser of the two formats; zeros to begin with would fit in any.
    read = next(iter(gradients))
    epsilon = max(torch.finfo(before[read].dtype).eps, machine_epsilon(after[read]))
    # The client rounded its weights, by at most epsilon / sqrt(12) of their size on average, and
    # its gradient before that.
    rounding = epsilon * (
        4 * root_mean_square(gradients[read]) + 0.3 * root_mean_square(before[read]) / reach
    )
    fields = observed_fields(head, layer, one_logit, {**fields, "training": training})
    return Observation(head=head, gradient=replace(gradient, rounding=rounding), **fields)


def observe_head_difference(
    before: StateDict,
    difference: StateDict,
    layer: str,
    training: LocalTraining,
    /,
    **fields: Any,
) -> Observation:
    """The observation of the head of that name, from its weights and how much the steps added.

    Raises:
        MissingKnowledge: The learning rate is not known.
        InvalidObservation: The two do not fit, or a value is impossible.
    """
    # In double precision the sum loses nothing of the difference.
    after = {
        name: before[name].to(change.device).double() + change.double()
        for name, change in difference.items()
        if name in before and before[name].shape == change.shape
    }
    seen = observe_head_update(before, after, layer, training, **fields)
    weight = difference.get(parameter_name(layer, "weight"))
    epsilon = 0.0 if weight is None else machine_epsilon(weight)
    rounding = 4 * epsilon * seen.gradient.size
    gradient = replace(seen.gradient, rounding=seen.gradient.rounding + rounding)
    return replace(seen, gradient=gradient)


def _mean_gradient(name: str, before: Tensor, after: Tensor, training: LocalTraining) -> Tensor:
    """The mean gradient that led from one tensor to the other, float64."""
    for when, tensor in (("before", before), ("after", after)):
        if not is_plain(tensor):
            raise InvalidObservation(
                f"{name} {when} the steps is {kind_of(tensor)}: a plain tensor of floating-point "
                "numbers is needed (16 bits or more)"
            )
    start, end = (tensor.detach().to(before.device, torch.float64) for tensor in (before, after))
    gradient = (start - end) / _reach_of(training)
    if training.weight_decay or training.proximal:
        way = (training.mean_place or 0.0) * (start - end)
        gradient -= training.weight_decay * (start - way) - training.proximal * way
    return gradient


def _reach_of(training: LocalTraining) -> float:
    """How far the mean gradient moved the weights.

    Raises:
        MissingKnowledge: The learning rate is not known.
    """
    if training.reach is None:
        raise MissingKnowledge(
            "the learning rate is not known: without it the change of the weights cannot be put to "
            "scale (learning_rate=F, on the command line --learning-rate F)"
        )
    return training.reach


def _recipe(
    learning_rate: float | None, batch_size: int | None, training: LocalTraining | None
) -> LocalTraining:
    """One plain step, or whatever else is told.

    Raises:
        InvalidObservation: A value is given twice.
    """
    if training is None:
        return LocalTraining(learning_rate=learning_rate, batch_size=batch_size, steps=1)
    if learning_rate is not None or batch_size is not None:
        raise InvalidObservation(
            "learning rate or batch size are given twice: beside training=..., they belong in "
            "LocalTraining(learning_rate=..., batch_size=...)"
        )
    return training
