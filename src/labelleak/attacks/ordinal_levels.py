"""Counts of ordered levels from the gradient of a CORAL layer."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.checks import whole_number
from labelleak.errors import InvalidObservation
from labelleak.projection import project_to_counts

# Variance of embeddings over the square of their mean, as of those after a ReLU.
_RATIO = 5.0


class LevelCounts(NamedTuple):
    """Counts of samples by level, of C levels in order.

    Attributes:
        above: Real-valued number of samples above each level but the last, float64, shape (C - 1,).
        counts: Number of samples at each level, int64, shape (C,), summing to the batch size.
    """

    above: Float[Tensor, " thresholds"]
    counts: Int[Tensor, " levels"]


def level_counts(
    weight: Float[Tensor, "1 features"],
    biases: Float[Tensor, " thresholds"],
    weight_gradient: Float[Tensor, "1 features"],
    bias_gradient: Float[Tensor, " thresholds"],
    batch_size: int,
) -> LevelCounts:
    """Counts of every level, from one step of a CORAL layer (Cao, Mirjalili and Raschka 2020).

    The layer puts out ``z_j = w e + b_j`` for the thresholds j between the levels, with one weight
    for all of them, and the loss is the mean over samples of the thresholds' binary
    cross-entropies. So ``K db_j = sum_k sigma(z_kj) - (number of samples above level j)``. The mean
    embedding is ``dw / sum_j db_j`` if mistakes do not depend on the embeddings, as before
    training. Mistakes nearly cancel, and then a single row tells little of it: the estimate is
    shrunk toward zero (James and Stein 1961) by what embeddings after a ReLU scatter. Counts of the
    levels are the differences of those above. A head with a row for every threshold is read as
    label sets by ``loss="bce"``, with intervals.

    Args:
        weight: Of the layer, w, shape (1, features).
        biases: The thresholds' biases b, shape (C - 1,).
        weight_gradient: Gradient of w, shape (1, features).
        bias_gradient: Gradient of b, shape (C - 1,).
        batch_size: Number of samples K.

    Returns:
        The counts; of a weight of zeros exact, otherwise no error of them is known.

    Raises:
        InvalidObservation: Shapes do not belong together, or a number is not finite.

    Examples:
        >>> import torch
        >>> from labelleak.attacks import level_counts
        >>> none, biases = torch.zeros(1, 4), torch.zeros(2)
        >>> level_counts(none, biases, torch.ones(1, 4), torch.tensor([-0.25, 0.25]), 8).counts
        tensor([2, 4, 2])
    """
    size = whole_number("batch size", batch_size)
    given = (weight, biases, weight_gradient, bias_gradient)
    w, b, dw, db = (tensor.detach().double() for tensor in given)
    if w.shape != dw.shape or b.shape != db.shape or len(w) != 1 or not len(b):
        raise InvalidObservation(
            "a CORAL layer has one weight (1, features) and a bias for every threshold, and a "
            "gradient of each"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (w, b, dw, db)):
        raise InvalidObservation("the layer or its gradient has NaN or infinite entries")
    total, noise = float(db.sum()), _RATIO * _mistakes(b, db) / size
    shift = float(w[0] @ dw[0]) * total / max(total**2 + noise, 1e-300)
    above = size * (torch.sigmoid(b + shift) - db)
    ends = torch.cat([above.new_tensor([float(size)]), above, above.new_zeros(1)])
    return LevelCounts(above, project_to_counts(ends[:-1] - ends[1:], size))


def _mistakes(
    biases: Float[Tensor, " thresholds"], gradient: Float[Tensor, " thresholds"]
) -> float:
    """Mean square of a sample's residuals' sum, if no embedding matters: its distance in levels."""
    predicted = torch.sigmoid(biases)
    above = (predicted - gradient).clamp(0.0, 1.0)
    # A sample at level l is above l thresholds: its squares follow from the shares above each.
    levels = torch.arange(1.0, 2.0 * len(above), 2.0).to(above)
    middle = predicted.sum()
    return max(float(levels @ above - 2.0 * middle * above.sum() + middle**2), 0.0)
