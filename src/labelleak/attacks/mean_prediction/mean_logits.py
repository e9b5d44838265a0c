"""Logits of the batch's mean embedding, with replicates that show their error."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from labelleak.attacks.diagnosis import class_sums
from labelleak.attacks.mean_prediction.regression import (
    BLOCK,
    SMALL_HEAD,
    apply_weight,
    noisy_rows,
    regress,
)
from labelleak.attacks.mean_prediction.scatter import FEW_CLASSES, expected_scatter
from labelleak.attacks.mean_prediction.weight_only import restored_bias_gradient
from labelleak.numerics import row_blocks
from labelleak.observation import Observation

# Replicates for a small head, and for a large one or many classes, where each costs a column of
# every product.
_REPLICATES, _REPLICATES_LARGE = 128, 7
_MANY_CLASSES = 1 << 14
_NOISY_ROWS = 4
# Share of its variance that the error of a shrunk estimate keeps at least.
_LEAST_SIGNAL = 0.25
# A head that has not learned passes for one that has with this probability. Of two classes a single
# number tells: more pass, so that fewer that have learned are missed.
_BY_CHANCE, _BY_CHANCE_OF_TWO = 1e-3, 0.1
# Relative, of sums of squares in double precision: less is left where all rows are the same.
_ROUNDING = 1e-12


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
        signal: Share of the estimate's squared length that its own error does not explain, from 0
            to 1.
        has_learned: Whether embeddings lie along the head's rows: see `_has_learned`.
        expected: Length of the logits, less the bias, that a head as it is initialized gives this
            mean embedding.
    """

    logits: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    samples: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    noise: float
    embedding: Float[Tensor, " features"]
    doubt: float
    signal: float
    has_learned: bool
    expected: float


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
    few = double and observation.classes <= _MANY_CLASSES
    replicates = _REPLICATES if few else _REPLICATES_LARGE
    given = gradient.bias
    bias_gradient = restored_bias_gradient(observation, length) if given is None else given.double()
    embeddings, noise = regress(
        gradient.weight, bias_gradient, replicates, double=double, block=block
    )
    noisy = noisy_rows(embeddings[:, :1], noise, _NOISY_ROWS)
    directions = _directions(embeddings, replicates if observation.classes <= FEW_CLASSES else 0)
    columns = torch.cat([embeddings, noisy, directions], dim=1)
    logits = apply_weight(head.weight, columns, double=double, block=block)
    logits -= logits.mean(dim=0)
    numbers = [1, replicates, _NOISY_ROWS, directions.shape[1]]
    center, deviations, of_noise, others = torch.split(logits, numbers, dim=1)
    scatter = expected_scatter(observation, bias_gradient)
    size = max(float(deviations.square().mean()), 1e-300)
    error, single = scatter.factors(float(of_noise.square().mean()) / size)
    errors, samples = error * deviations, single * deviations
    variance = error**2 * _mean_length(embeddings[:, 1:])
    if directions.numel():
        before = scatter.beforehand(gradient.weight, embeddings[:, 0], _mean_length(noisy))
        rows, rest = before.weight_of_rows**0.5, (1.0 - before.weight_of_rows) ** 0.5
        errors = rows * errors + rest * before.error * others
        samples = rows * samples + rest * before.single * others
        if observation.classes == 2:
            variance = before.error**2
    length = max(float(embeddings[:, 0].square().sum()), 1e-300)
    squares = _squares(head.weight)
    offset = 0.0 if head.bias is None else head.bias.double()[:, None]
    return MeanLogits(
        (center + offset)[:, 0],
        errors.add_(center + offset),
        samples,
        bias_gradient,
        noise,
        embeddings[:, 0],
        scatter.doubt,
        max(0.0, 1.0 - variance / length),
        _has_learned(squares, center, deviations, embeddings),
        math.sqrt(squares / head.features * length),
    )


def _squares(weight: Float[Tensor, "classes features"]) -> float:
    """Sum of squares of a head's weight, less what all classes have in common."""
    squares = sum(float(rows.double().square().sum()) for rows in row_blocks(weight))
    rest = squares - float(class_sums(weight).square().sum()) / len(weight)
    return rest if rest > _ROUNDING * squares else 0.0


def _has_learned(
    squares: float,
    center: Float[Tensor, "classes 1"],
    deviations: Float[Tensor, "classes replicates"],
    embeddings: Float[Tensor, "features estimates"],
) -> bool:
    """Whether training has turned the head toward what embeddings differ in.

    The rows of a head as it is initialized are independent of the embeddings: residuals of the
    gradient's rows then give logits of the mean square that their length and the head's lets
    expect. Training turns the head's rows to where embeddings differ, and such logits are many
    times larger. Two classes leave no residuals, but for them the mean embedding shows it, if less
    clearly.
    """
    classes = len(center)
    logits, vectors = (
        (deviations, embeddings[:, 1:]) if classes > 2 else (center, embeddings[:, :1])
    )
    length = float(vectors.square().sum())
    if not length * squares:
        return False
    size, expected = float(logits.square().sum()), length * squares / len(embeddings)
    # Sums of rows have no more directions than there are rows: the product is often not needed.
    if size <= _most_by_chance(classes, min(classes, *vectors.shape)) * expected:
        return False
    vectors = vectors / length**0.5  # whose fourth power may underflow
    directions = 1.0 / float((vectors.T @ vectors).square().sum())
    return size > _most_by_chance(classes, directions) * expected


def _most_by_chance(classes: int, directions: float) -> float:
    """Mean square of logits, relative to the expected one, that a head passes for learned above.

    Every independent direction among the vectors gives classes - 1 logits to compare.
    """
    freedom = (classes - 1) * directions
    chance = _BY_CHANCE if classes > 2 else _BY_CHANCE_OF_TWO
    return float(chdtri(freedom, chance)) / freedom


def shrunk(observation: Observation, found: MeanLogits) -> MeanLogits:
    """The estimate with its embedding shrunk toward zero (James and Stein 1961).

    An estimate that is no longer than its error explains tells nothing: the mean prediction is then
    nearer to that of the head's bias.

    Args:
        observation: Of the head.
        found: The estimate by least squares, which is not biased and too long.
    """
    bias = observation.head.bias
    offset = 0.0 if bias is None else bias.double() - bias.double().mean()
    logits = offset + found.signal * (found.logits - offset)
    share = max(found.signal, _LEAST_SIGNAL) ** 0.5
    errors = (found.replicates - found.logits[:, None]).mul_(share)
    return found._replace(logits=logits, replicates=errors.add_(logits[:, None]))


def _mean_length(vectors: Float[Tensor, "features vectors"]) -> float:
    """Mean squared length."""
    return float(vectors.square().sum(dim=0).mean())


def _directions(
    like: Float[Tensor, "features _"], number: int
) -> Float[Tensor, "features directions"]:
    """Random vectors of an expected squared length of one."""
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(len(like), number, generator=generator, dtype=torch.float64).to(like)
    return drawn.div_(len(like) ** 0.5)


def second_order(found: MeanLogits) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """The mean of softmax minus the softmax of the mean, for samples that scatter.

    Returns:
        This shift of the mean prediction, and its standard error, shape (classes,) each.
    """
    mean, plain = found.logits[:, None], torch.softmax(found.logits, dim=0)
    above = torch.softmax(mean + found.samples, dim=0).mean(dim=1)
    below = torch.softmax(mean - found.samples, dim=0).mean(dim=1)
    shift = (above + below) / 2 - plain
    # The other extreme is a uniform mean prediction, as of an untrained network.
    away = plain - 1.0 / len(plain)
    doubted = found.doubt * away * (len(plain) * away.abs()).clamp_max(1.0)
    return shift, (shift.square().mean() + doubted.square()).sqrt()
