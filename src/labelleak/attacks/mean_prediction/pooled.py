"""Pooled restoration: one mean embedding from all rows, and the counts that follow from it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.mean_prediction.counts import MeanPrediction, counts_of
from labelleak.attacks.mean_prediction.weight_only import restored_bias_gradient
from labelleak.attacks.registry import Gives, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Rows that are worked on at once hold so many entries: threads wait for each other after each.
_BLOCK_ENTRIES = 1 << 23
# Up to so many entries everything is computed in double precision, with more replicates.
_SMALL_HEAD = 1 << 22
_REPLICATES, _REPLICATES_LARGE = 128, 7
_NOISY_ROWS = 4
# Share of its expected square down to which a bias gradient is small by chance.
_SURE = 0.3
# Rows of a batch of one class do not scatter: no more is made of what they do than this allows.
_LEAST_SCATTER = 1e-3


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
    return counts_of("pooled", observation, mean_prediction(observation))


def mean_prediction(observation: Observation) -> MeanPrediction:
    """The mean prediction over the batch by pooling, with replicates that show its error.

    The mean of softmax is not softmax of the mean: single samples scatter about the mean embedding
    as rows do, which shifts the mean prediction. The shift is applied, and counted as an error of
    its own size, since rows show the scatter within classes and between them only together.
    """
    found = mean_logits(observation)
    shift, size = second_order(found)
    generator = torch.Generator().manual_seed(5)
    errors = torch.randn(found.replicates.shape, generator=generator, dtype=torch.float64)
    errors = errors.to(shift) * size[:, None]
    return MeanPrediction(
        torch.softmax(found.logits, dim=0) + shift,
        torch.softmax(found.replicates, dim=0) + shift[:, None] + errors,
        found.bias_gradient,
        noise=found.noise,
    )


class MeanLogits(NamedTuple):
    """What the head makes of the mean embedding.

    Attributes:
        logits: float64, shape (classes,).
        replicates: The same of every bootstrap replicate, float64, shape (classes, replicates).
        samples: Logits of single samples less their mean, as they scatter, float64, shape
            (classes, replicates).
        bias_gradient: Given, or restored from the weight's; float64, shape (classes,), in the
            gradient's own unit.
        noise: Standard deviation of the noise in an entry of a given one, in its unit.
        embedding: Mean embedding, float64, shape (features,).
        doubt: From 0 to 1, that the bias gradient is small because the network is sure of most
            labels, so that the mean embedding is one of its mistakes and tells nothing.
    """

    logits: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    samples: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    noise: float
    embedding: Float[Tensor, " features"]
    doubt: float


def mean_logits(observation: Observation, length: float | None = None) -> MeanLogits:
    """Logits of the mean embedding, by least squares over the rows of the gradient.

    Replicates follow the wild bootstrap (Liu 1988; Mammen 1993): the residual of every row gets a
    random sign, which leaves what rows scatter by and destroys what they have in common. Their
    size is made that of the error (`_Scatter`). `length` is about that of the mean embedding, which
    helps where there is no bias gradient.
    """
    gradient, head = observation.gradient, observation.head
    replicates = _REPLICATES if gradient.weight.numel() <= _SMALL_HEAD else _REPLICATES_LARGE
    given = gradient.bias
    bias_gradient = restored_bias_gradient(observation, length) if given is None else given.double()
    embeddings, noise = _regress(gradient.weight, bias_gradient, replicates)
    columns = torch.cat([embeddings, _noisy_rows(embeddings[:, :1], noise)], dim=1)
    logits = _apply(head.weight, columns)
    logits -= logits.mean(dim=0)
    centre, deviations, noisy = logits[:, :1], logits[:, 1:-_NOISY_ROWS], logits[:, -_NOISY_ROWS:]
    scatter = _scatter(observation, bias_gradient)
    size = max(float(deviations.square().mean()), 1e-300)
    error, single = scatter.factors(float(noisy.square().mean()) / size)
    if head.bias is not None:
        centre = centre + head.bias.double()[:, None]
    return MeanLogits(
        centre[:, 0],
        centre + deviations * error,
        deviations * single,
        bias_gradient,
        noise,
        embeddings[:, 0],
        scatter.doubt,
    )


def second_order(found: MeanLogits) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """Mean prediction of samples that scatter, less the prediction of their mean; and its error.

    Returns:
        The shift of the mean prediction, and its standard error, shape (classes,).
    """
    mean, plain = found.logits[:, None], torch.softmax(found.logits, dim=0)
    either = torch.cat([mean + found.samples, mean - found.samples], dim=1)
    shift = torch.softmax(either, dim=0).mean(dim=1) - plain
    # The other extreme is the uniform mean; predictions near it are those of an untrained network.
    away = plain - 1.0 / len(plain)
    doubted = found.doubt * away * (len(plain) * away.abs()).clamp_max(1.0)
    return shift, (shift.square().mean() + doubted.square()).sqrt()


class _Scatter(NamedTuple):
    """How rows, and the estimate made of them, scatter if labels do not depend on embeddings.

    Row i then is ``db_i`` times the batch's mean embedding, less ``x_i`` times what the mean over
    the class's samples differs from it by, with x_i the weight of the class in the batch.

    Attributes:
        rows: Expected sum of the squares of the residuals, in units of the variance of one sample's
            embedding over the batch size.
        estimate: Variance of the estimate, in the same unit.
        classes: Number of rows.
        squares: Of the bias gradient.
        size: Effective number of samples: the batch size, or more where the bias gradient is
            smaller than that of so many samples that are predicted at random.
        doubt: See `MeanLogits`.
    """

    rows: float
    estimate: float
    classes: int
    squares: float
    size: float
    doubt: float

    def factors(self, noise: float) -> tuple[float, float]:
        """What replicates are to be multiplied by to scatter as the estimate and as one sample.

        Args:
            noise: Mean square of a noisy row over that of a replicate.
        """
        freedom = max(self.classes - 2, 1)
        noisy = min(noise * freedom, 1.0)
        own = (1.0 - noisy) * self.estimate / self.rows
        return math.sqrt(own + noisy / (self.squares * freedom)), math.sqrt(
            (1.0 - noisy) * self.size / self.rows
        )


def _scatter(observation: Observation, bias_gradient: Float[Tensor, " classes"]) -> _Scatter:
    classes, smoothing = observation.classes, observation.loss.label_smoothing
    scale = observation.scale
    centred = (bias_gradient - bias_gradient.mean()) / scale
    squares = max(float(centred.square().sum()), 1e-300)
    share = ((1.0 - smoothing) / classes - centred).clamp_min(0.0)
    share = share / share.sum() if bool(share.any()) else torch.ones_like(share) / classes
    weight = torch.ones_like(share)
    if observation.loss.class_weights is not None:
        weight = observation.loss.class_weights.to(share)
        weight = weight * (share / weight).sum()
    # Covariance of rows i and j: [i = j] x_i w_i - x_i x_j (w_i + w_j - mean w).
    mean, along = float(share @ weight), float(share @ centred)
    trace = mean - float((share.square() * (2.0 * weight - mean)).sum())
    fitted = float((share * weight * centred.square()).sum())
    fitted += along * (mean * along - 2.0 * float((share * weight) @ centred))
    keep = (1.0 - smoothing) ** 2
    size = keep * trace / squares
    told = observation.num_instances or size
    return _Scatter(
        rows=scale**2 * keep * max(trace - fitted / squares, _LEAST_SCATTER),
        estimate=keep * max(fitted, 0.0) / squares**2,
        classes=classes,
        squares=scale**2 * squares,
        size=max(size, told),
        doubt=max(1.0 - told / max(_SURE * size, 1e-300), 0.0),
    )


def _noisy_rows(
    embedding: Float[Tensor, "features 1"], noise: float
) -> Float[Tensor, "features rows"]:
    """What noise in the gradient leaves of a row beside its multiple of the mean embedding."""
    generator = torch.Generator().manual_seed(6)
    draws = torch.randn(
        len(embedding) + 1, _NOISY_ROWS, generator=generator, dtype=torch.float64
    ).to(embedding)
    return noise * (draws[1:] - embedding * draws[:1])


def _regress(
    weight_gradient: Float[Tensor, "classes features"],
    bias_gradient: Float[Tensor, " classes"],
    replicates: int,
) -> tuple[Float[Tensor, "features estimates"], float]:
    """The mean embedding by least squares, column 0, and sums of residuals; and the noise.

    The other columns are the residuals of all rows, summed with random signs. Noise in the
    regressor adds its own variance to the sum of squares (errors in variables), which is taken off
    again, down to a tenth of what was there.
    """
    classes, features = weight_gradient.shape
    centred = bias_gradient - bias_gradient.mean()
    squares = float(centred.square().sum())
    small = weight_gradient.numel() <= _SMALL_HEAD
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (replicates, classes), generator=generator, dtype=torch.int8)
    signs = signs.to(bias_gradient.device)

    # One pass for all: the estimate, its replicates, and the sums that are zero without noise.
    sums = torch.zeros(replicates + 2, features, dtype=torch.float64, device=centred.device)
    shared = torch.zeros(replicates, dtype=torch.float64, device=centred.device)
    for rows in _blocks(weight_gradient.shape):
        signed = 2.0 * signs[:, rows].to(centred) - 1.0
        shared += signed @ centred[rows]
        factors = torch.cat([centred[rows][None], signed, torch.ones_like(centred[rows])[None]])
        block = weight_gradient[rows]
        block = block.double() if small or block.dtype != torch.float32 else block
        sums += factors.to(block.dtype) @ block
    noise = float(sums[-1].norm()) / math.sqrt(classes * features)
    norm = max(squares - (classes - 1) * noise**2, 0.1 * squares)
    estimate = sums[:1] / norm
    residuals = sums[1:-1] - shared[:, None] * estimate
    return torch.cat([estimate, residuals]).T, noise


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
