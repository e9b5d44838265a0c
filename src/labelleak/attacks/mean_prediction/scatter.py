"""How the gradient's rows scatter, and with them the mean embedding that is made of them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.observation import Observation

# Share of its expected square down to which a bias gradient is small by chance.
_SURE = 0.3
# Rows of a batch of one class do not scatter: no more is made of what they do than this allows.
_LEAST_SCATTER = 1e-3


class Scatter(NamedTuple):
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
        doubt: From 0 to 1, that the bias gradient is small because the network is sure of most
            labels, so that the mean embedding is one of its mistakes and tells nothing.
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


def expected_scatter(observation: Observation, bias_gradient: Float[Tensor, " classes"]) -> Scatter:
    """How rows scatter in a batch with such a bias gradient.

    Args:
        observation: Of the loss and the batch size.
        bias_gradient: Given or restored, in the gradient's unit, float64.
    """
    classes, smoothing = observation.classes, observation.loss.label_smoothing
    scale = observation.scale
    centered = (bias_gradient - bias_gradient.mean()) / scale
    squares = max(float(centered.square().sum()), 1e-300)
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
        estimate=keep * max(fitted, 0.0) / squares**2,
        classes=classes,
        squares=scale**2 * squares,
        size=max(size, told),
        doubt=max(1.0 - told / max(_SURE * size, 1e-300), 0.0),
    )
