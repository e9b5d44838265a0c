"""What several attacks read from an observation: the gradient of a mean loss, and its terms."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation


def weights_of(observation: Observation, like: Tensor) -> Float[Tensor, " classes"]:
    """The loss's weight of each class, in the dtype and on the device of another tensor."""
    if observation.class_weights is None:
        return like.new_ones(observation.classes)
    return observation.class_weights.to(like)


def divisor_weights(observation: Observation, like: Tensor) -> Float[Tensor, " classes"]:
    """What a sample of each class adds to the number that the loss divides by, likewise."""
    if observation.reduction == "mean":
        return weights_of(observation, like)
    return like.new_ones(observation.classes)


def mistakes(
    observation: Observation,
    predictions: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
) -> Float[Tensor, "samples classes"]:
    """Derivative of every sample's loss by its logits; ``prediction - one-hot`` for the plain loss.

    Args:
        observation: Says what the loss is.
        predictions: Probabilities of the classes.
        labels: True classes.

    Returns:
        In the dtype of the predictions.
    """
    weights, smoothing = weights_of(observation, predictions), observation.label_smoothing
    targets = (1 - smoothing) * torch.diag(weights) + smoothing / observation.classes * weights
    targets = targets[labels]
    return predictions * targets.sum(dim=1, keepdim=True) - targets


def row_sums(observation: Observation) -> Float[Tensor, " classes"]:
    """Sum of every row of the weight gradient of a mean loss, float64."""
    return observation.gradient.weight.sum(dim=1, dtype=torch.float64) / mean_divisor(observation)


def bias_gradient(observation: Observation) -> Float[Tensor, " classes"]:
    """The bias gradient of a mean loss, float64."""
    if observation.gradient.bias is None:
        raise MissingKnowledge("the final layer's bias gradient is missing")
    return observation.gradient.bias.double() / mean_divisor(observation)


def mean_divisor(observation: Observation) -> int:
    """What the gradient is to be divided by to be that of a mean loss.

    Raises:
        MissingKnowledge: A summed loss, and the batch size is not known.
    """
    if observation.reduction == "mean":
        return 1
    if observation.batch_size is None:
        raise MissingKnowledge(
            "a summed loss needs the batch size (batch_size=K, --batch-size K): without it the "
            "gradient has no scale"
        )
    return observation.batch_size


def instances(observation: Observation) -> int:
    """The number of instances, for attacks that need it."""
    if observation.num_instances is None:
        raise MissingKnowledge("the batch size is missing (batch_size=K, --batch-size K)")
    return observation.num_instances
