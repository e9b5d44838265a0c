"""Losses with a sigmoid for every label: their residuals and values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from labelleak.loss.formulas import sigmoid_residuals
from labelleak.loss.told import Told


def residuals_of_labels(
    told: Told, logits: Float[Tensor, "*shape labels"]
) -> tuple[Float[Tensor, "*shape labels"], Float[Tensor, "*shape labels"]]:
    """The residual of every label that is absent, and of every one that is there."""
    ones = logits.new_ones(logits.shape[-1])
    negative = ones if told.label_weights is None else told.label_weights.to(logits)
    positive = negative
    if told.positive_weights is not None:
        positive = negative * told.positive_weights.to(logits)
    if told.alpha is not None:
        negative, positive = (1.0 - told.alpha) * ones, told.alpha * ones
    return sigmoid_residuals(logits, told.gamma or 0.0, negative, positive)


def sigmoids_value(
    told: Told,
    logits: Float[Tensor, "samples labels"],
    targets: Float[Tensor, "samples labels"],
    kept: Bool[Tensor, "samples labels"],
    divisor: float,
) -> Float[Tensor, ""]:
    """The loss of a batch, with the sum over the targets that are kept."""
    clean = targets.masked_fill(~kept, 0.0)
    weights, positive = (
        None if given is None else given.to(logits)
        for given in (told.label_weights, told.positive_weights)
    )
    each = functional.binary_cross_entropy_with_logits(
        logits, clean, weights, pos_weight=positive, reduction="none"
    )
    if told.gamma:
        # The probability of the other value is exactly the sigmoid of the turned logit.
        each = each * torch.sigmoid((1.0 - 2.0 * clean) * logits).pow(told.gamma)
    if told.alpha is not None:
        each = each * (1.0 - told.alpha + (2.0 * told.alpha - 1.0) * clean)
    return torch.where(kept, each, 0.0).sum() / divisor
