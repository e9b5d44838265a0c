"""Losses with a softmax: their targets, residuals and values."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from labelleak.loss.formulas import focal_weights
from labelleak.loss.told import Told

# Class index that `torch.nn.functional.cross_entropy` leaves out unless told another.
_TORCH_IGNORES = -100


def weights_of_classes(told: Told, classes: int, like: Tensor) -> Float[Tensor, " classes"]:
    """The weight of each class, in the dtype and on the device of `like`."""
    if told.class_weights is None:
        return like.new_ones(classes)
    return told.class_weights.to(like)


def softmax_targets(
    told: Told, labels: Int[Tensor, " samples"], classes: int, like: Tensor
) -> Float[Tensor, "samples classes"]:
    """One-hot targets times the class weights, with label smoothing."""
    weights, smoothing = weights_of_classes(told, classes, like), told.label_smoothing
    targets = weights.new_zeros(len(labels), classes)
    targets.scatter_(1, labels[:, None], ((1.0 - smoothing) * weights)[labels][:, None])
    targets += smoothing / classes * weights
    return targets


def softmax_residual(
    told: Told, predictions: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "samples classes"]:
    """Derivative of each sample's loss by its logits, of which the softmax is known."""
    if told.class_weights is None and not told.label_smoothing:
        # One-hot targets, whose mass is 1: no table of them is made.
        found = predictions.scatter_add(1, labels[:, None], -torch.ones_like(predictions[:, :1]))
    else:
        targets = softmax_targets(told, labels, predictions.shape[1], predictions)
        found = predictions * targets.sum(dim=1, keepdim=True) - targets
    if told.temperature != 1.0:
        found = found / told.temperature
    if told.gamma:
        found = found * focal_weights(predictions, labels, told.gamma)[:, None]
    return found


def softmax_value(
    told: Told, logits: Float[Tensor, "samples classes"], targets: Tensor, divisor: float | None
) -> Float[Tensor, ""]:
    """The loss of a batch.

    Args:
        told: The options.
        logits: Any floating dtype.
        targets: Class indices, or probabilities.
        divisor: What the samples' sum is divided by; None where torch's own reduction does it.
    """
    weights = None if told.class_weights is None else told.class_weights.to(logits)
    ignored = _TORCH_IGNORES if told.ignore_index is None else told.ignore_index
    logits = logits / told.temperature if told.temperature != 1.0 else logits
    each = functional.cross_entropy(
        logits,
        targets,
        weights,
        ignore_index=ignored,
        reduction=told.reduction if divisor is None else "none",
        label_smoothing=told.label_smoothing,
    )
    if divisor is None:
        return each
    if told.gamma:
        plain = functional.cross_entropy(logits, targets, ignore_index=ignored, reduction="none")
        each = each * (-torch.expm1(-plain)).pow(told.gamma)
    return each.sum() / divisor
