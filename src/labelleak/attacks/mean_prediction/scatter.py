"""How the gradient's rows scatter, and the mean embedding that is estimated from them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE

# Down to this share of its expected square, a bias gradient may be small by chance.
_SURE = 0.3
# Floor of the scatter of rows: those of a batch of one class do not scatter at all.
_LEAST_SCATTER = 1e-3
# What is known of embeddings before any row is seen: their variance over the square of their mean.
# Those after a ReLU are of one sign, and differ about as much as they are long. Others may be zero
# on average. That counts as much as so many degrees of freedom; rows have classes - 2, which for
# more classes than these are enough.
_RATIO, _RATIO_OF_SIGNED = 5.0, 300.0
_ONE_SIGN = 0.9
_PRIOR_FREEDOM = 2
FEW_CLASSES = 4


def student_factor(classes: int) -> float:
    """By how much standard errors are larger, so that intervals keep their level.

    They are estimated from few rows where there are few classes: Student's quantile.
    """
    freedom = classes - 2 + _PRIOR_FREEDOM if classes <= FEW_CLASSES else classes - 1
    return float(stdtrit(freedom, 0.975)) / NORMAL_QUANTILE


class Beforehand(NamedTuple):
    """What is known of the scatter of rows beforehand: all there is for two classes.

    Attributes:
        error: Standard deviation of the length of the mean embedding's error.
        single: That of one sample's embedding.
        weight_of_rows: Share that the rows have in what is known of the scatter together.
    """

    error: float
    single: float
    weight_of_rows: float


class Scatter(NamedTuple):
    """How rows and their estimate scatter if labels do not depend on embeddings.

    Row i is then ``db_i`` times the batch's mean embedding, minus ``x_i`` times the difference
    between the class's mean embedding and the batch's. x_i is the class's weight in the batch.

    Attributes:
        rows: Expected sum of squared residuals, in units of the variance of one sample's embedding
            over the batch size.
        trace: Expected sum of squares of all rows but for the mean embedding's part, in that unit.
        estimate: Variance of the estimate, in the same unit.
        classes: Number of rows.
        squares: Sum of squares of the bias gradient.
        told: The batch size as told, or else `size`.
        size: Effective number of samples: the batch size, or more if the bias gradient is smaller
            than that of a batch of this size that is predicted at random.
        doubt: From 0 to 1: that the bias gradient is small because the network is sure of most
            labels. The mean embedding is then that of its mistakes.
    """

    rows: float
    trace: float
    estimate: float
    classes: int
    squares: float
    told: float
    size: float
    doubt: float

    def factors(self, noise: float) -> tuple[float, float]:
        """Factors that make replicates scatter as the estimate does, and as one sample does.

        Args:
            noise: Mean square of a noisy row over that of a replicate.
        """
        freedom = max(self.classes - 2, 1)
        noisy = min(noise * freedom, 1.0)
        own = (1.0 - noisy) * self.estimate / self.rows
        return math.sqrt(own + noisy / (self.squares * freedom)), math.sqrt(
            (1.0 - noisy) * self.size / self.rows
        )

    def beforehand(
        self,
        gradient: Float[Tensor, "classes features"],
        estimate: Float[Tensor, " features"],
        noise: float,
    ) -> "Beforehand":
        """What is known of the scatter before any row is compared with another.

        Args:
            gradient: Of the weight. The mean embedding and the scatter about it share its squares.
            estimate: Of the mean embedding, shape (features,).
            noise: Mean squared length of a noisy row.
        """
        freedom = self.classes - 2
        lean = abs(float(estimate.sum())) / max(float(estimate.abs().sum()), 1e-300)
        ratio = (_RATIO if lean > _ONE_SIGN else _RATIO_OF_SIGNED) / self.told
        squares = float(gradient.double().square().sum())
        variance = ratio * squares / (self.squares + ratio * self.trace)
        return Beforehand(
            error=math.sqrt(variance * self.estimate + noise / self.squares),
            single=math.sqrt(variance * self.told),
            weight_of_rows=freedom / (freedom + _PRIOR_FREEDOM),
        )


def _mean_weight(observation: Observation, bias_gradient: Float[Tensor, " classes"]) -> float:
    """Mean weight of the samples where the divisor does not know of it, else 1.

    It is the one at which the shares add up to one, for a mean prediction that is even.
    """
    loss, classes = observation.loss, observation.classes
    if not loss.ignores_weights:
        return 1.0
    even = torch.full_like(bias_gradient, 1.0 / classes)
    weights = loss.sample_weights(even[:, None])[:, 0]
    shares = float((bias_gradient / observation.scale / weights).sum())
    return max(1.0 + shares, _LEAST_SCATTER) / float((1.0 / weights).mean())


def expected_scatter(observation: Observation, bias_gradient: Float[Tensor, " classes"]) -> Scatter:
    """How rows scatter in a batch with this bias gradient.

    Args:
        observation: Of the loss and the batch size.
        bias_gradient: Given or restored, in the gradient's unit, float64.

    Raises:
        MissingKnowledge: It is the same for every class.
    """
    classes, smoothing = observation.classes, observation.loss.label_smoothing
    scale = observation.scale * _mean_weight(observation, bias_gradient)
    centered = (bias_gradient - bias_gradient.mean()) / scale
    squares = float(centered.square().sum())
    if not squares:
        raise MissingKnowledge(
            "the bias gradient is the same for every class, which is rounding: it tells no counts"
        )
    share = ((1.0 - smoothing) / classes - centered).clamp_min(0.0)
    share = share / share.sum() if bool(share.any()) else torch.ones_like(share) / classes
    weight = torch.ones_like(share)
    if observation.loss.class_weights is not None:
        weight = observation.loss.class_weights.to(share)
        weight = weight * (share / weight).sum()
    # Covariance of rows i and j: [i = j] x_i w_i - x_i x_j (w_i + w_j - mean w).
    mean, along = float(share @ weight), float(share @ centered)
    trace = mean - float((share.square() * (2.0 * weight - mean)).sum())
    fitted = float((share * weight * centered.square()).sum())
    fitted += along * (mean * along - 2.0 * float((share * weight) @ centered))
    keep = (1.0 - smoothing) ** 2
    size = keep * trace / squares
    told = observation.num_instances or size
    return Scatter(
        rows=scale**2 * keep * max(trace - fitted / squares, _LEAST_SCATTER),
        trace=scale**2 * keep * max(trace, _LEAST_SCATTER),
        estimate=keep * max(fitted, 0.0) / squares**2,
        classes=classes,
        squares=scale**2 * squares,
        told=max(told, 1.0),
        size=max(size, told),
        doubt=max(1.0 - told / max(_SURE * size, 1e-300), 0.0),
    )
