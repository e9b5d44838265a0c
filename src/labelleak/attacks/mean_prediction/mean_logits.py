"""Logits of the batch's mean embedding, with replicates that show their error."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.mean_prediction.regression import (
    BLOCK,
    SMALL_HEAD,
    apply_weight,
    noisy_rows,
    regress,
)
from labelleak.attacks.mean_prediction.scatter import expected_scatter
from labelleak.attacks.mean_prediction.weight_only import restored_bias_gradient
from labelleak.observation import Observation

# Replicates for a small head, and for a large one, where each costs a column of every product.
_REPLICATES, _REPLICATES_LARGE = 128, 7
_NOISY_ROWS = 4


class MeanLogits(NamedTuple):
    """Logits of the mean embedding.

    Attributes:
        logits: float64, shape (classes,).
        replicates: Logits of every bootstrap replicate, float64, shape (classes, replicates).
        samples: Draws of the logits of single samples minus their mean, float64, shape
            (classes, replicates).
        bias_gradient: Given, or restored from the weight's; float64, shape (classes,), in the
            gradient's own unit.
        noise: Standard deviation of the noise in an entry of the gradient, in its unit.
        embedding: Mean embedding, float64, shape (features,).
        doubt: See `Scatter`.
    """

    logits: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    samples: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    noise: float
    embedding: Float[Tensor, " features"]
    doubt: float


def mean_logits(
    observation: Observation,
    length: float | None = None,
    *,
    small_head: int = SMALL_HEAD,
    block: int = BLOCK,
) -> MeanLogits:
    """Logits of the mean embedding, by least squares over the rows of the gradient.

    Replicates follow the wild bootstrap (Liu 1988; Mammen 1993): the residual of every row gets a
    random sign, which keeps the scatter of rows and destroys what they have in common. `Scatter`
    scales them to the size of the error.

    Args:
        observation: Needs the head and its weight gradient.
        length: Estimated length of the mean embedding; used only without a bias gradient.
        small_head: Most entries for which everything is computed in float64.
        block: Entries in one block of rows.
    """
    gradient, head = observation.gradient, observation.head
    double = gradient.weight.numel() <= small_head
    replicates = _REPLICATES if double else _REPLICATES_LARGE
    given = gradient.bias
    bias_gradient = restored_bias_gradient(observation, length) if given is None else given.double()
    embeddings, noise = regress(
        gradient.weight, bias_gradient, replicates, double=double, block=block
    )
    columns = torch.cat([embeddings, noisy_rows(embeddings[:, :1], noise, _NOISY_ROWS)], dim=1)
    logits = apply_weight(head.weight, columns, double=double, block=block)
    logits -= logits.mean(dim=0)
    center, deviations, noisy = logits[:, :1], logits[:, 1:-_NOISY_ROWS], logits[:, -_NOISY_ROWS:]
    scatter = expected_scatter(observation, bias_gradient)
    size = max(float(deviations.square().mean()), 1e-300)
    error, single = scatter.factors(float(noisy.square().mean()) / size)
    if head.bias is not None:
        center = center + head.bias.double()[:, None]
    return MeanLogits(
        center[:, 0],
        center + deviations * error,
        deviations * single,
        bias_gradient,
        noise,
        embeddings[:, 0],
        scatter.doubt,
    )


def second_order(found: MeanLogits) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """The mean of softmax minus the softmax of the mean, for samples that scatter.

    Returns:
        This shift of the mean prediction, and its standard error, shape (classes,) each.
    """
    mean, plain = found.logits[:, None], torch.softmax(found.logits, dim=0)
    either = torch.cat([mean + found.samples, mean - found.samples], dim=1)
    shift = torch.softmax(either, dim=0).mean(dim=1) - plain
    # The other extreme is a uniform mean prediction, as of an untrained network.
    away = plain - 1.0 / len(plain)
    doubted = found.doubt * away * (len(plain) * away.abs()).clamp_max(1.0)
    return shift, (shift.square().mean() + doubted.square()).sqrt()
