"""Counts from the bias gradient of a network that prefers some classes, whatever it is shown."""

import torch

from labelleak import Observation, Restoration
from labelleak.attacks import Gives, Need, register
from labelleak.projection import project_to_counts


@register(
    "shared-shift",
    title="One prediction for the whole batch",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="the network predicts much the same for every sample, as an untrained one does",
    reference="the template of labelleak, examples/my-attack",
)
def shared_shift(observation: Observation, *, sharpness: float = 1.0) -> Restoration:
    """Take softmax(sharpness * bias) for every sample's prediction p.

    The bias gradient of a mean loss is p - n / K, so that n = K * (p - gradient).
    """
    bias, gradient = observation.head.bias, observation.gradient.bias
    size = observation.num_instances
    assert bias is not None, "needs has been checked"
    assert gradient is not None, "needs has been checked"
    assert size is not None, "needs has been checked"
    prediction = torch.softmax(sharpness * bias.double(), dim=0)
    mean_gradient = gradient.double() / observation.scale  # which is K under a summed loss
    counts = project_to_counts(size * (prediction - mean_gradient), size)
    return Restoration(present=counts > 0, counts=counts)
