"""Pooled restoration: one mean embedding from all rows, and the counts that follow from it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks._counts import MeanPrediction, conclude
from labelleak.attacks._weight_only import restored_bias_gradient
from labelleak.attacks.registry import Gives, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Rows that are worked on at once hold about so many entries: what a core's cache holds.
_BLOCK_ENTRIES = 1 << 20
# Up to so many entries everything is computed in double precision, with more replicates.
_SMALL_HEAD = 1 << 22
_REPLICATES, _REPLICATES_LARGE = 128, 7


@register(
    "pooled",
    title="pooled (one mean embedding by least squares)",
    gives=(Gives.COUNTS,),
    assumes="predictions that differ little within the batch, as of an untrained network",
    reference="labelleak, documentation of the attack 'pooled'",
)
def pooled(observation: Observation) -> Restoration:
    """Restore the counts from the batch's mean embedding.

    Every row of the weight gradient is nearly ``db_i`` times one mean embedding. Its least-squares
    estimate pools all rows, ``e = dW^T db / (db^T db)``, the head turns it into the mean prediction
    ``p = softmax(W e + b)``, and ``n = K (p - db)`` is exact but for the error of p. Time O(C m):
    one pass over the gradient and one over the head.

    Without a bias gradient, db and e are the gradient's top singular pair; the one number that this
    leaves open, the length of e, is the one that makes the counts whole and non-negative. Without
    a batch size, the smallest one that makes them whole is taken, where there is evidence of it.

    Args:
        observation: Needs the head and its weight gradient. Without a batch size, and where the
            gradient does not show it, proportions only.

    Returns:
        ``raw``, ``rounded``, ``counts`` and proportions, and a standard error of every count.

    Raises:
        MissingKnowledge: A summed loss, no batch size, and none that the gradient shows.
    """
    return conclude("pooled", observation, mean_prediction(observation))


def mean_prediction(observation: Observation) -> MeanPrediction:
    """The mean prediction over the batch by pooling, with replicates that show its error.

    Replicates follow the wild bootstrap (Liu 1988; Mammen 1993): the residual of every row gets a
    random sign, which leaves what rows scatter by and destroys what they have in common.
    """
    found = mean_logits(observation)
    return MeanPrediction(
        torch.softmax(found.logits, dim=0),
        torch.softmax(found.replicates, dim=0),
        found.bias_gradient,
        noise=found.noise,
        bias_replicates=found.bias_replicates,
    )


class MeanLogits(NamedTuple):
    """What the head makes of the mean embedding.

    Attributes:
        logits: float64, shape (classes,).
        replicates: The same of every bootstrap replicate, float64, shape (classes, replicates).
        bias_gradient: Given, or restored from the weight's; float64, shape (classes,), in the
            gradient's own unit.
        bias_replicates: Draws of the bias gradient where it is restored; None where it is given.
        noise: Standard deviation of the noise in an entry of a given one, in its unit.
        embedding: Mean embedding, float64, shape (features,).
    """

    logits: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    bias_replicates: Float[Tensor, "classes replicates"] | None
    noise: float
    embedding: Float[Tensor, " features"]


def mean_logits(observation: Observation) -> MeanLogits:
    """Logits of the mean embedding, by least squares over the rows of the gradient."""
    gradient, head = observation.gradient, observation.head
    replicates = _REPLICATES if gradient.weight.numel() <= _SMALL_HEAD else _REPLICATES_LARGE
    varied = None
    if gradient.bias is None:
        bias_gradient, varied = restored_bias_gradient(observation, replicates)
    else:
        bias_gradient = gradient.bias.double()
    embeddings, noise = _regress(
        gradient.weight, bias_gradient, _scatter(observation, bias_gradient), replicates
    )
    logits = _apply(head.weight, embeddings)
    if head.bias is not None:
        logits += head.bias.double()[:, None]
    centre, others = logits[:, :1], logits[:, 1:]
    if varied is not None:
        # A longer embedding goes with a smaller bias gradient; the head's bias does not scale.
        longer = (bias_gradient.norm() / varied.norm(dim=0)).clamp(0.1, 10.0)
        offset = 0.0 if head.bias is None else head.bias.double()[:, None]
        others = (others - offset) * longer + offset
    if varied is not None:
        noise = 0.0
    return MeanLogits(centre[:, 0], others, bias_gradient, varied, noise, embeddings[:, 0])


def gradient_noise(weight_gradient: Float[Tensor, "classes features"]) -> float:
    """Standard deviation of independent noise in an entry, from sums that are zero without it."""
    classes, features = weight_gradient.shape
    sums = (weight_gradient.new_ones(classes) @ weight_gradient).double()
    return float(sums.norm()) / math.sqrt(classes * features)


def _scatter(
    observation: Observation, bias_gradient: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """How much every row scatters: about as its class's share of the batch, shape (classes,)."""
    summed = observation.reduction == "sum"
    share = bias_gradient / ((observation.batch_size or 1) if summed else 1)
    share = (1.0 / observation.classes - share).clamp_min(0.0)
    return share if bool(share.any()) else torch.ones_like(share)


def _regress(
    weight_gradient: Float[Tensor, "classes features"],
    bias_gradient: Float[Tensor, " classes"],
    scatter: Float[Tensor, " classes"],
    replicates: int,
) -> tuple[Float[Tensor, "features estimates"], float]:
    """The mean embedding by least squares, column 0, and bootstrap replicates; and the noise.

    Noise in the regressor adds its own variance to the sum of squares (errors in variables), which
    is taken off again, down to a tenth of what was there.
    """
    classes, features = weight_gradient.shape
    centred = bias_gradient - bias_gradient.mean()
    squares = float(centred.square().sum())
    small = weight_gradient.numel() <= _SMALL_HEAD
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (replicates, classes), generator=generator, dtype=torch.int8)
    signs = signs.to(bias_gradient.device)
    # A row that dominates the fit has a residual that is too small: MacKinnon and White's HC3.
    leverage = centred.square() / squares
    # Residuals sum to zero over the classes. Where all scatter alike and enter alike, their errors
    # cancel: only what an entry differs from the mean by counts.
    common = (scatter @ centred) / scatter.sum()
    weights = (centred - common) / (1.0 - leverage).clamp_min(0.1)

    # One pass for all: the estimate, its replicates, and the sums that are zero without noise.
    sums = torch.zeros(replicates + 2, features, dtype=torch.float64, device=centred.device)
    shared = torch.zeros(replicates, dtype=torch.float64, device=centred.device)
    for rows in _blocks(weight_gradient.shape):
        signed = (2.0 * signs[:, rows] - 1.0) * weights[rows]
        shared += signed @ centred[rows]
        factors = torch.cat([centred[rows][None], signed, torch.ones_like(centred[rows])[None]])
        block = weight_gradient[rows]
        block = block.double() if small or block.dtype != torch.float32 else block
        sums += factors.to(block.dtype) @ block
    noise = float(sums[-1].norm()) / math.sqrt(classes * features)
    norm = max(squares - (classes - 1) * noise**2, 0.1 * squares)
    estimate = sums[:1] / norm
    deviations = (sums[1:-1] - shared[:, None] * estimate) / norm
    return torch.cat([estimate, estimate + deviations]).T, noise


def _apply(
    weight: Float[Tensor, "classes features"], embeddings: Float[Tensor, "features estimates"]
) -> Float[Tensor, "classes estimates"]:
    """Weight times embeddings, float64, block by block."""
    small = weight.numel() <= _SMALL_HEAD
    logits = embeddings.new_empty(weight.shape[0], embeddings.shape[1])
    single = embeddings.float()
    for rows in _blocks(weight.shape):
        block = weight[rows]
        if small or block.dtype != torch.float32:
            logits[rows] = block.double() @ embeddings
        else:
            logits[rows] = (block @ single).double()
    return logits


def _blocks(shape: torch.Size) -> list[slice]:
    step = max(1, _BLOCK_ENTRIES // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]
