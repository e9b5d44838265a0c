"""Logits of the batch's mean embedding where every label has a sigmoid, and how far they are off.

Row c of the head's gradient is ``(1 / D) sum_k r_kc e_k``, and the entry of the bias is the same
without e. So every row is its entry of the bias gradient times the batch's mean embedding, plus
what the samples that have label c differ from the others in.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation

_REPLICATES = 128
# A head that has not learned passes for one that has with this probability.
_BY_CHANCE = 1e-3
# Floor of the spread of a residual over the batch, for labels that all samples have or none.
_LEAST_SPREAD = 1e-3


class LabelLogits(NamedTuple):
    """Logits of the mean embedding, float64.

    Attributes:
        logits: Shape (labels,).
        replicates: Draws of the estimate, shape (labels, replicates).
        samples: Draws of single samples' deviations from the mean, shape (labels, replicates).
        bias_gradient: As sent, shape (labels,).
        has_learned: Whether embeddings lie along the head's rows, so that they tell of labels.
    """

    logits: Float[Tensor, " labels"]
    replicates: Float[Tensor, "labels replicates"]
    samples: Float[Tensor, "labels replicates"]
    bias_gradient: Float[Tensor, " labels"]
    has_learned: bool


def bias_of_labels(observation: Observation) -> Float[Tensor, " labels"]:
    """The bias gradient as it was sent, float64.

    Raises:
        MissingKnowledge: There is none; or the loss is summed, and nobody told the batch size.
    """
    if not observation.has_bias or observation.gradient.bias is None:
        raise MissingKnowledge(
            "counts of labels need the final layer's bias and its gradient: each label's is one "
            "equation"
        )
    if observation.loss.masked:
        raise MissingKnowledge(
            "where targets are left out (masked), the update does not tell how many of each label: "
            "no attack counts them"
        )
    if observation.batch_size is None and not observation.loss.averages:
        raise MissingKnowledge(
            "a summed loss needs the batch size (batch_size=K, --batch-size K): without it the "
            "gradient has no scale"
        )
    return observation.gradient.bias.double()


def divisor_of_one(observation: Observation) -> float:
    """What the loss divides a sum over samples by, for every sample of the batch: D / K."""
    size = observation.batch_size or 1
    return observation.loss.divisor_of_labels(size, observation.classes) / size


def label_logits(observation: Observation) -> LabelLogits:
    """Logits of the mean embedding, by least squares over the rows of the gradient.

    Replicates follow the wild bootstrap: the residual of every row gets a random sign. They are
    scaled to the error that labels have which do not depend on the embeddings.

    Args:
        observation: Needs the head with its bias, and both gradients.

    Raises:
        MissingKnowledge: The bias gradient is missing, or zero.
    """
    rows = pooled_rows(observation, bias_of_labels(observation))
    spread = _spread(observation, rows.logits, rows.bias_gradient)
    fitted = float((rows.bias_gradient.square() * spread).sum()) / rows.squares
    return rows.scattered(observation, fitted, float(spread.sum()))


class PooledRows(NamedTuple):
    """Least squares over the rows of the gradient, before its error is known; float64.

    Attributes:
        logits: Of the mean embedding, shape (outputs,).
        moved: Logits of the rows' residuals with random signs, shape (outputs, replicates).
        deviations: These residuals, shape (features, replicates).
        bias_gradient: As sent, shape (outputs,).
        weight: Of the head, shape (outputs, features).
    """

    logits: Float[Tensor, " outputs"]
    moved: Float[Tensor, "outputs replicates"]
    deviations: Float[Tensor, "features replicates"]
    bias_gradient: Float[Tensor, " outputs"]
    weight: Float[Tensor, "outputs features"]

    @property
    def squares(self) -> float:
        """Sum of squares of the bias gradient."""
        return float(self.bias_gradient.square().sum())

    def scattered(self, observation: Observation, fitted: float, total: float) -> LabelLogits:
        """The logits, with replicates scaled to their error.

        Args:
            observation: What the server sees.
            fitted: Variance of the residuals of samples along the bias gradient.
            total: That along all outputs together.
        """
        left = max(total - fitted, _LEAST_SPREAD * total)
        error = math.sqrt(max(fitted, 0.0) / self.squares / left)
        single = divisor_of_one(observation) * math.sqrt((observation.num_instances or 1) / left)
        return LabelLogits(
            self.logits,
            self.logits[:, None] + error * self.moved,
            single * self.moved,
            self.bias_gradient,
            _has_learned(self.weight, self.moved, self.deviations),
        )


def pooled_rows(observation: Observation, bias: Float[Tensor, " outputs"]) -> PooledRows:
    """Least squares over the rows of the gradient.

    Args:
        observation: Needs the head and its gradient.
        bias: Gradient of the bias as sent.

    Raises:
        MissingKnowledge: It is zero.
    """
    head = observation.head
    rows, weight = observation.gradient.weight.double(), head.weight.double()
    squares = float(bias.square().sum())
    if not squares:
        raise MissingKnowledge("the bias gradient is zero for every label: it tells no counts")
    embedding = bias @ rows / squares
    residuals = rows - bias[:, None] * embedding
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (_REPLICATES, len(rows)), generator=generator).to(bias) * 2 - 1
    deviations = (signs @ residuals).T
    offset = torch.zeros_like(bias) if head.bias is None else head.bias.double()
    return PooledRows(weight @ embedding + offset, weight @ deviations, deviations, bias, weight)


def _spread(
    observation: Observation, logits: Float[Tensor, " labels"], bias: Float[Tensor, " labels"]
) -> Float[Tensor, " labels"]:
    """Variance of each label's residual over the batch, for samples of one embedding."""
    zero, one = observation.loss.binary_residuals(logits)
    apart = zero - one
    shares = ((zero - divisor_of_one(observation) * bias) / apart).clamp(0.0, 1.0)
    spread: Tensor = apart.square() * (shares * (1.0 - shares)).clamp_min(_LEAST_SPREAD)
    return spread


def _has_learned(
    weight: Float[Tensor, "labels features"],
    moved: Float[Tensor, "labels replicates"],
    deviations: Float[Tensor, "features replicates"],
) -> bool:
    """Whether training has turned the head toward what embeddings differ in.

    Rows of a head as it is initialized are independent of the embeddings, and give residuals of the
    gradient the logits that their lengths let expect. Training makes them many times larger.
    """
    products = deviations.T @ deviations
    length = float(products.trace())
    if not length:
        return False
    expected = length * float(weight.square().sum()) / weight.shape[1]
    freedom = len(weight) * length**2 / float(products.square().sum())
    most = float(chdtri(freedom, _BY_CHANCE)) / freedom
    return float(moved.square().sum()) > most * expected
