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
from labelleak.updates.heads import by_bare_name, named_head, parameter_name
from labelleak.updates.parameters import (
    StateDict,
    gradient_of,
    head_of,
    inside_wrappers,
    parameters_of,
)

# No gradient is so near to the weights that it belongs to, relative to their size.
_NEAR = 0.5


def observe(
    model: nn.Module | StateDict,
    gradients: Mapping[str, Tensor | None] | Sequence[Tensor | None],
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
        model: The model before the step, or its state dict.
        gradients: One gradient per parameter: by name, or in the order of ``model.parameters()``.
            Entries that are None (frozen parameters) count as not sent.
        batch_size: Number of samples K of the one step that led to the gradient; None where nobody
            told the server.
        loss: The client's loss, or the name of its kind.
        training: How the client trained, where the gradient is the mean of several steps; it holds
            the batch size then.
        instances: Number of different samples, see `Observation`, as are the following.
        present_classes: Classes known to be in the batch, int64, shape (present,).
        input_shape: Shape of one input of the model.
        auxiliary: Labelled samples of the server's own.
        head: Name of the final linear layer; None to find it.

    Returns:
        The observation. It shares memory with the given tensors. Names are without the prefix that
        a wrapper (DataParallel, compile, Opacus) puts on all of them, and the model is the one
        inside it.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: The head's gradient is missing or cannot be right, or a value is
            impossible.

    Example:
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
        loss=Loss.of(loss),
        training=_recipe(batch_size, training),
        instances=instances,
        present_classes=present_classes,
        model=inside_wrappers(model) if isinstance(model, nn.Module) else None,
        gradients=sent,
        input_shape=input_shape,
        auxiliary=auxiliary,
    )


def observe_head(parameters: StateDict, sent: StateDict, layer: str, **fields: Any) -> Observation:
    """The observation of the head of that name and its gradient.

    Raises:
        InvalidObservation: The gradient was not sent, or a value is impossible; or these are
            weights.
    """
    head, gradient = head_of(parameters, layer), gradient_of(sent, layer)
    observation = Observation(head=head, gradient=gradient, **fields)
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
