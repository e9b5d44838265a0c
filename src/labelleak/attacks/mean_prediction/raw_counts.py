"""Real-valued counts that a mean prediction and a bias gradient imply, and their errors."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.mean_prediction.scatter import student_factor
from labelleak.observation import Observation


class MeanPrediction(NamedTuple):
    """An estimate of the mean prediction over the batch, with what turns it into counts.

    Attributes:
        probabilities: float64, shape (classes,), summing to one. With class weights or smoothing
            samples are weighted as in the loss.
        replicates: Draws of the estimate that scatter about it as it scatters about the truth,
            float64, shape (classes, replicates).
        bias_gradient: Gradient of the head's bias in its own unit, float64, shape (classes,).
        noise: Standard deviation of the noise in an entry of the bias gradient.
        has_errors: Whether replicates tell how far the estimate is off. They do not where the
            network is seen to have learned, since samples' mistakes then depend on their labels.
    """

    probabilities: Float[Tensor, " classes"]
    replicates: Float[Tensor, "classes replicates"]
    bias_gradient: Float[Tensor, " classes"]
    noise: float = 0.0
    has_errors: bool = True


class Scattered(NamedTuple):
    """Real-valued counts, and the two parts of their errors.

    All three are linear in the batch size if the number of instances is a fixed multiple of it.

    Attributes:
        raw: float64, shape (classes,).
        scatter: Draws of the error, float64, shape (classes, replicates).
        noise: Standard error that noise in the bias gradient adds, float64, shape (classes,).
    """

    raw: Float[Tensor, " classes"]
    scatter: Float[Tensor, "classes replicates"]
    noise: Float[Tensor, " classes"]

    @property
    def standard_errors(self) -> Float[Tensor, " classes"]:
        """Standard error of every count."""
        return (self.scatter.square().mean(dim=1) + self.noise.square()).sqrt()


def raw_counts(
    observation: Observation,
    probabilities: Float[Tensor, "classes estimates"],
    bias_gradient: Float[Tensor, "classes _"],
    instances: float,
    batch_size: float,
) -> Float[Tensor, "classes estimates"]:
    """Real-valued counts that a mean prediction and a bias gradient imply.

    With class weights w and label smoothing a, one sample of class j adds
    ``w_j (1 - a)(p - y_j) + (a / C)(sum(w) p - w)`` to the loss's gradient. With x_j = n_j w_j,
    X = sum(x), N = sum(n):

        K db = ((1 - a) X + a mean(w) N) p - (1 - a) x - (a / C) w N

    A mean loss divides by X, so X = K in its units, and N follows from ``sum(x / w) = N``. For a
    summed loss, and one divided by the number of samples, N = K, and X follows from the same
    equation. Plain cross-entropy leaves ``x = K (p - db)``. Under a focal loss, w_j is times the
    factor that a sample of this prediction has.

    Args:
        observation: Of the loss: reduction, label smoothing, class weights.
        probabilities: Mean predictions, one estimate per column, float64.
        bias_gradient: In its own unit, float64, one column or one per estimate.
        instances: Number of instances of the update.
        batch_size: Number of samples of one step, by which a summed loss is larger.

    Returns:
        Counts that sum to `instances` as far as the bias gradient sums to zero.
    """
    loss, classes = observation.loss, observation.classes
    smoothing, keep = loss.label_smoothing, 1.0 - loss.label_smoothing
    target = instances * bias_gradient / loss.scale(batch_size)
    if loss.is_plain and loss.averages:
        # What is below comes to that, but with very many classes takes several times as long.
        return instances * probabilities - target
    weights = loss.sample_weights(probabilities)
    # Both unknowns enter linearly: x = fixed + X per_x + N per_n.
    fixed, per_x = -target / keep, probabilities
    per_n = smoothing * (weights.mean() * probabilities - weights / classes) / keep
    if not loss.averages or loss.ignores_weights:
        constant = fixed + instances * per_n
        x = constant + per_x * (instances - (constant / weights).sum(0)) / (per_x / weights).sum(0)
        return x / weights
    constant = fixed + instances * per_x
    number = (constant / weights).sum(0) / (1.0 - (per_n / weights).sum(0))
    counts = (constant + number * per_n) / weights
    if loss.class_weights is None:
        return counts
    sums = counts.sum(0)
    return torch.where(sums > 0, counts * (instances / sums), counts)


def scattered_counts(
    observation: Observation, mean: MeanPrediction, instances: int, batch_size: int
) -> Scattered:
    """Real-valued counts of a mean prediction, and the two parts of their errors."""
    given = mean.bias_gradient[:, None]
    raw = raw_counts(observation, mean.probabilities[:, None], given, instances, batch_size)[:, 0]
    others = raw_counts(observation, mean.replicates, given, instances, batch_size)
    scatter = others.sub_(raw[:, None]).mul_(student_factor(observation.classes))
    loss = observation.loss
    weights = loss.sample_weights(mean.probabilities[:, None])[:, 0]
    slope = instances / (loss.scale(batch_size) * (1.0 - loss.label_smoothing) * weights)
    return Scattered(raw, scatter, slope * mean.noise)
