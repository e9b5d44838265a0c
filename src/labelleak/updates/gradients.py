"""From a client's gradients to an observation."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Integer
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.loss import Loss
from labelleak.numerics import root_mean_square
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
    parameters_of,
    turned,
)

# No gradient is so near to the weights that it belongs to, relative to their size.
_NEAR = 0.5


def observe(
    model: nn.Module | Values,
    gradients: Values,
    *,
    batch_size: int | None = None,
    loss: Loss | str = "cross_entropy",
    training: LocalTraining | None = None,
    instances: int | None = None,
    present_classes: Integer[Tensor, " present"] | None = None,
    input_shape: tuple[int, ...] | None = None,
    auxiliary: Auxiliary | None = None,
    head: str | None = None,
) -> Observation:
    """What the server sees of a client that sends gradients.

    Args:
        model: The model before the step, or its state dict: tensors, or arrays of NumPy.
        gradients: One gradient per parameter, tensors or arrays: by name, or in the order of
            ``model.parameters()`` or of its state dict. Entries that are None (frozen parameters)
            count as not sent. Kernels of Keras and Flax are transposed.
        batch_size: Number of samples K of the one step that led to the gradient; None where nobody
            told the server.
        loss: The client's loss, or the name of its kind. A head of one logit, which needs one with
            a sigmoid, is read as two classes, 0 and 1.
        training: How the client trained, where the gradient is the mean of several steps; it holds
            the batch size then.
        instances: Number of different samples, see `Observation`, as are the following.
        present_classes: Classes known to be in the batch, int64, shape (present,).
        input_shape: Shape of one input of the model.
        auxiliary: Labeled samples of the server's own.
        head: Name of the final linear layer; None to find it.

    Returns:
        The observation. It shares memory with the given tensors. Names are those of the model,
        without the prefix that a wrapper (DataParallel, compile, Opacus) puts on all of them, and
        the model is the one inside it. Of copies of the head (a teacher, what PEFT keeps) the one
        that has a gradient is read.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: The head's gradient is missing or cannot be right, or a value is
            impossible; or the head is tied to a table of embeddings.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        >>> gradients = torch.autograd.grad(loss, list(model.parameters()))
        >>> observation = labelleak.observe(model, gradients, batch_size=8)
        >>> labelleak.restore(observation).counts.tolist()
        [3, 2, 0, 2, 1]
    """
    parameters = parameters_of(model)
    sent = _sent(model, gradients)
    loss = Loss.of(loss)
    pair = find_pair(
        Held(parameters),
        Held(sent),
        head,
        changed=lambda _, gradient: bool(gradient.any()),
        accepted=Accepted.by(loss),
    )
    sent = pair.by_model_names(sent, parameters)
    return observe_head(
        parameters,
        sent,
        pair.layer,
        loss=loss,
        training=_recipe(batch_size, training),
        instances=instances,
        present_classes=present_classes,
        model=inside_wrappers(model) if isinstance(model, nn.Module) else None,
        gradients=sent,
        input_shape=input_shape,
        auxiliary=auxiliary,
    )


def _sent(model: nn.Module | Values, gradients: Values) -> dict[str, Tensor]:
    """The gradients that were sent, by bare name as torch has them.

    Raises:
        InvalidObservation: There is not one for each parameter, where they come in order.
    """
    if isinstance(gradients, Mapping):
        return by_bare_name(turned(flat_tensors(gradients)))
    if not isinstance(gradients, Sequence) or isinstance(gradients, str):
        raise InvalidObservation(
            f"gradients are a {type(gradients).__name__}: pass a dict by name, or a list with "
            "one entry per parameter (list(...) makes one)"
        )
    if not isinstance(model, nn.Module):
        return _in_order_of_a_state_dict(model, gradients)
    names = [name for name, _ in model.named_parameters()]
    if len(gradients) != len(names):
        state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if len(gradients) == len(state) and not any(value is None for value in gradients):
            return by_bare_name(turned(in_order(gradients, state)))
        raise InvalidObservation(
            f"{len(gradients)} gradients for {len(names)} parameters: pass one per "
            "parameter in the order of model.parameters(), or a dict by name"
        )
    return by_bare_name(flat_tensors(dict(zip(names, gradients, strict=True))))


def _in_order_of_a_state_dict(model: Values, gradients: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients in a list by the names of a state dict, or in the order of a list.

    Raises:
        InvalidObservation: Some are missing, so that the order does not tell.
    """
    if any(value is None for value in gradients) or (
        isinstance(model, Mapping) and len(gradients) != len(flat_tensors(model))
    ):
        raise InvalidObservation(
            "gradients in a list are matched by the order of model.parameters(): pass the "
            "model itself, or the gradients by name"
        )
    if not isinstance(model, Mapping):
        return by_bare_name(turned(in_order(gradients, None)))
    shapes = {name: tuple(value.shape) for name, value in flat_tensors(model).items()}
    return by_bare_name(turned(in_order(gradients, shapes)))


def observe_head(parameters: StateDict, sent: StateDict, layer: str, **fields: Any) -> Observation:
    """The observation of the head of that name and its gradient.

    Raises:
        InvalidObservation: The gradient was not sent, or a value is impossible; or these are
            weights.
    """
    head, one_logit = head_of(parameters, layer), is_one_logit(parameters, layer)
    gradient = gradient_of(sent, head, one_logit=one_logit)
    observation = Observation(
        head=head, gradient=gradient, **observed_fields(head, layer, one_logit, fields)
    )
    # A copy of a language model's head would be large, and some rows tell.
    some = slice(1, 2) if one_logit else slice(0, 1024)
    change = root_mean_square(gradient.weight[some] - head.weight[some])
    if change < _NEAR * root_mean_square(head.weight[some]):
        raise InvalidObservation(
            f"{parameter_name(layer, 'weight')} of the update is close to that of the model: these "
            "are weights after training, and no gradients; give the learning rate of the local "
            "steps (observe_update(..., learning_rate=...), --learning-rate)"
        )
    return observation


def _recipe(batch_size: int | None, training: LocalTraining | None) -> LocalTraining:
    """One step on a batch of that size, or whatever else is told.

    Raises:
        InvalidObservation: Both are given.
    """
    if training is None:
        return LocalTraining(batch_size=batch_size)
    if batch_size is not None:
        raise InvalidObservation(
            "the batch size is given twice: beside training=..., it belongs in "
            "LocalTraining(batch_size=...)"
        )
    return training
