"""What several attacks read from an observation: its gradient, at the scale of a mean loss."""

from jaxtyping import Float
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.numerics import sums_of_rows
from labelleak.observation import Observation


def row_sums(observation: Observation) -> Float[Tensor, " classes"]:
    """Sum of every row of the weight gradient of a mean loss, float64."""
    return sums_of_rows(observation.gradient.weight) / mean_divisor(observation)


def bias_gradient(observation: Observation) -> Float[Tensor, " classes"]:
    """The bias gradient of a mean loss, float64."""
    if observation.gradient.bias is None:
        raise MissingKnowledge("the final layer's bias gradient is missing")
    return observation.gradient.bias.double() / mean_divisor(observation)


def mean_divisor(observation: Observation) -> float:
    """What the gradient is to be divided by to be that of a mean loss.

    Raises:
        MissingKnowledge: A summed loss, and the batch size is not known.
    """
    if observation.batch_size is None and not observation.loss.averages:
        raise MissingKnowledge(
            "a summed loss needs the batch size (batch_size=K, --batch-size K): without it the "
            "gradient has no scale"
        )
    return observation.scale


def instances(observation: Observation) -> int:
    """The number of instances, for attacks that need it."""
    if observation.num_instances is None:
        raise MissingKnowledge("the batch size is missing (batch_size=K, --batch-size K)")
    return observation.num_instances
