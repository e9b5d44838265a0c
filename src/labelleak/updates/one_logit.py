"""One logit, read as two classes: a sigmoid is the softmax of the logits 0 and z.

The gradient of such a head is that of the two classes' second row, and the first has the opposite
of it. So whatever reads two classes under a softmax reads one logit, its targets 0 and 1 being the
classes.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.loss import Loss, Reduction
from labelleak.training import LocalTraining


def rows_of_two(row: Tensor) -> Tensor:
    """Weight or bias of two classes: zeros for the first."""
    return torch.cat([torch.zeros_like(row), row])


def gradients_of_two(row: Tensor) -> Tensor:
    """The gradient by the weight or bias of two classes."""
    return torch.cat([-row, row])


def loss_of_two(loss: Loss) -> Loss:
    """The softmax loss of two classes that a sigmoid's loss of one logit is.

    Args:
        loss: With a sigmoid.

    Raises:
        InvalidObservation: Weights are not for one label, or masks and a mean over all samples.

    Examples:
        >>> loss_of_two(Loss("bce", positive_weights=torch.tensor([3.0]))).class_weights.tolist()
        [1.0, 3.0]
    """
    if loss.kind in ("cox", "mse"):
        # No classes: the second row is the output.
        return loss
    loss.check_classes(1)
    if loss.masked and loss.reduction == "sample_mean":
        raise InvalidObservation(
            "targets that are left out and a mean over all samples cannot be read of one logit: "
            "use reduction 'mean' or 'sum'"
        )
    if loss.function is not None:
        return Loss("custom", loss.reduction, function=_of_two(loss.function), pixels=loss.pixels)
    weights = None
    if loss.alpha is not None:
        weights = torch.tensor([1.0 - loss.alpha, loss.alpha], dtype=torch.float64)
    elif loss.positive_weights is not None or loss.label_weights is not None:
        weights = torch.ones(2, dtype=torch.float64)
        for rows, given in (
            (slice(1, 2), loss.positive_weights),
            (slice(0, 2), loss.label_weights),
        ):
            if given is not None:
                weights[rows] *= given.double().cpu()
    told: dict[str, Any] = {
        "class_weights": weights,
        "ignore_index": -1 if loss.masked else None,
        "pixels": loss.pixels,
    }
    if loss.gamma:
        return Loss("focal", loss.reduction, gamma=loss.gamma, **told)
    weighted_mean = weights is not None and loss.reduction == "mean"
    return Loss("cross_entropy", "sample_mean" if weighted_mean else loss.reduction, **told)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of one logit as one of two classes' logits, of which only the difference tells."""

    def difference(logits: Tensor, labels: Tensor) -> Tensor:
        found = function(logits[:, 1:] - logits[:, :1], labels.to(logits)[:, None])
        return found.flatten() if isinstance(found, Tensor) and found.ndim > 1 else found

    return difference


def loss_of_one(loss: Loss) -> Loss:
    """The sigmoid's loss of one logit that `loss_of_two` made two classes of.

    Args:
        loss: Of two classes, as `loss_of_two` gives it.

    Examples:
        >>> told = loss_of_one(loss_of_two(Loss("bce", positive_weights=torch.tensor([3.0]))))
        >>> told.kind, told.positive_weights.tolist()
        ('bce', [3.0])
    """
    weights = loss.class_weights
    told: dict[str, Any] = {"masked": loss.ignore_index is not None}
    # Of one logit, the mean over targets and the one over samples are the same.
    reduction: Reduction = "mean" if loss.averages else "sum"
    if loss.kind == "focal":
        told["alpha"] = None if weights is None else float(weights[1])
        return Loss("sigmoid_focal", reduction, gamma=loss.gamma, **told)
    if weights is not None:
        told |= {"label_weights": weights[:1], "positive_weights": weights[1:] / weights[:1]}
    return Loss("bce", reduction, **told)


def training_of_one(training: LocalTraining) -> LocalTraining:
    """The recipe of a client with one logit, of the one that `observed_of_two` gives."""
    return _at_rates(training, 2.0)


def observed_of_two(
    layer: str,
    *,
    loss: Loss,
    training: LocalTraining,
    model: nn.Module | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    after: Mapping[str, Tensor] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Fields of an `Observation` of one logit, as those of two classes.

    A step moves the difference of two classes' logits twice as far as it moves one logit: the rates
    that the head is followed by are half of the client's.

    Args:
        layer: Name of the head.
        loss: With a sigmoid.
        training: The recipe.
        model: The network; what it becomes shares all tensors but those of the head.
        gradients: The whole update by name.
        after: The client's state dict.
        **others: Fields that stay as they are.
    """
    return {
        **others,
        "loss": loss_of_two(loss),
        "training": _at_rates(training, 0.5),
        "model": None if model is None else _model_of_two(model, layer),
        "gradients": _replaced(gradients, layer, gradients_of_two),
        "after": _replaced(after, layer, rows_of_two),
    }


def _at_rates(training: LocalTraining, factor: float) -> LocalTraining:
    """The recipe with all its learning rates so many times larger."""
    rates = training.learning_rate
    if rates is None:
        return training
    other = (
        tuple(factor * rate for rate in rates) if isinstance(rates, Sequence) else factor * rates
    )
    return replace(training, learning_rate=other)


def _replaced(state: Mapping[str, Tensor] | None, layer: str, change: Any) -> Any:
    names = {f"{layer}.{kind}" if layer else kind for kind in ("weight", "bias")}
    if state is None:
        return None
    return {name: change(value) if name in names else value for name, value in state.items()}


def _model_of_two(model: nn.Module, layer: str) -> nn.Module:
    """The network with a head of two classes in place of one logit."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = deepcopy(model, {id(tensor): tensor for tensor in tensors})
    old = copied.get_submodule(layer)
    new = deepcopy(old)
    for kind, value in list(new.named_parameters(recurse=False)):
        two = rows_of_two(value.detach())
        setattr(new, kind, nn.Parameter(two, requires_grad=value.requires_grad))
    # A linear layer says how many outputs it has, and a convolution how many channels.
    setattr(new, "out_channels" if hasattr(new, "out_channels") else "out_features", 2)
    if not layer:
        return new
    parent, _, name = layer.rpartition(".")
    setattr(copied.get_submodule(parent), name, new)
    return copied
