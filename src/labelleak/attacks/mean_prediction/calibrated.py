"""Calibrated restoration: the mean prediction from the whole model on dummy or auxiliary inputs."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from scipy.special import stdtrit
from torch import Tensor, nn

from labelleak.attacks.cost import check_room
from labelleak.attacks.inputs import guessed_shape, smooth_noise
from labelleak.attacks.mean_prediction.combination import Seen, combined, summary
from labelleak.attacks.mean_prediction.counts import counts_of
from labelleak.attacks.mean_prediction.drift import on_the_way
from labelleak.attacks.mean_prediction.mean_input import MeanInput, gradient_of_layer, mean_input
from labelleak.attacks.mean_prediction.mean_logits import MeanLogits, mean_logits
from labelleak.attacks.mean_prediction.passes import (
    as_the_client,
    entering,
    first_layer,
    first_vector_layer,
    head_of,
    logits_of,
    mean_set,
)
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Restoration

# Spectra of the dummies: amplitudes fall as the frequency to minus these powers. Natural images
# have about 1; images that were scaled down or drawn with a broad pen are steeper.
_SLOPES = (1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
# Standard deviation of the logarithm of the inputs' power, and of the mean of a channel that no
# gradient shows, in units of the root mean square.
_POWER_SPREAD = 0.1
_CHANNEL_SPREAD = 0.1
# Share of the power that inputs keep beside their mean, however large the mean is.
_LEAST_POWER = 0.05
# Dummies that show what an error of their mean changes; they pass once per drawn error.
_FEW = 64


@register(
    "calibrated",
    title="calibrated (mean prediction of dummy inputs that match the update)",
    needs=(Need.WEIGHT, Need.MODEL),
    uses=(Need.GRADIENTS, Need.INPUT_SHAPE, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="inputs normalized to a mean square of one, and smooth as images are; or auxiliary "
    "inputs from the client's distribution; a network that is not trained far",
    reference="labelleak, documentation of the attack 'calibrated'",
    losses=("cross_entropy", "focal"),
)
def calibrated(observation: Observation, *, dummies: int = 256, power: float = 1.0) -> Restoration:
    """Restore the counts by ``n = K (p - db)`` with p from the whole model.

    Inputs that resemble the batch go through the model, with BatchNorm in the client's mode, and
    their mean prediction stands for the batch's. They are the observation's auxiliary inputs, or
    else smooth noise: then the first fully connected layer is fed the mean input that its gradient
    reveals. The mean logits are combined with those of `pooled`, weighted by their variances.

    Args:
        observation: Needs the model, and what `pooled` needs. If the first layer is fully
            connected, it also needs that layer's gradients or auxiliary inputs.
        dummies: Number of dummy inputs for each of six spectra.
        power: Mean square of the model's inputs; 1 for normalized data.

    Returns:
        As `pooled`.

    Raises:
        MissingKnowledge: The model, its first layer's gradient or the shape of its inputs is
            missing; or what `pooled` lacks; or more classes than there is memory for.
        InvalidObservation: Inputs of the shape that was given do not go through the model.
    """
    model = observation.model
    check_room(observation, "calibrated")
    if model is None:
        raise MissingKnowledge(f"attack 'calibrated' needs {Need.MODEL.value}")
    with as_the_client(model):
        length = None if observation.has_bias else _usual_length(observation, model, power)
        pooled = mean_logits(observation, length)
        if observation.auxiliary is None:
            seen = _see_dummies(observation, model, pooled, dummies, power)
        else:
            seen = _see_auxiliary(observation, model, observation.auxiliary.inputs)
    mean = on_the_way(observation, combined(observation, pooled, seen), pooled)
    return counts_of(observation, mean)


def _usual_length(observation: Observation, model: nn.Module, power: float) -> float:
    """Length of the mean embedding of dummy or auxiliary inputs."""
    if observation.auxiliary is None:
        shape = observation.input_shape or guessed_shape(model, first_layer(model), "calibrated")
        generator = torch.Generator().manual_seed(0)
        (inputs,) = smooth_noise(shape, _FEW, _SLOPES[:1], generator)
        inputs = inputs * power**0.5
    else:
        inputs = observation.auxiliary.inputs
    return float(entering(model, head_of(observation, model), inputs).mean(dim=0).norm())


def _see_auxiliary(
    observation: Observation, model: nn.Module, inputs: Num[Tensor, "samples *shape"]
) -> Seen:
    logits = logits_of(observation, model, inputs)
    nothing = logits.new_zeros(observation.classes, 1)
    return summary(logits, nothing, nothing, len(inputs))


class _Revealed(NamedTuple):
    """The mean input of a layer, as its gradient reveals it.

    Attributes:
        layer: The first that takes one vector per sample.
        mean: Mean over the batch, with its error.
        center: The mean as an input of the model if this is its first layer, else None.
    """

    layer: nn.Linear
    mean: MeanInput
    center: Tensor | None


def _see_dummies(
    observation: Observation, model: nn.Module, pooled: MeanLogits, dummies: int, power: float
) -> Seen:
    shape = observation.input_shape or guessed_shape(model, first_layer(model), "calibrated")
    generator = torch.Generator().manual_seed(0)
    fields = smooth_noise(shape, dummies, _SLOPES, generator)
    middle = fields[len(fields) // 2]
    revealed = _revealed(observation, model, pooled, middle, power)
    center = None if revealed is None else revealed.center
    kinds = []
    for field in fields:
        scale = math.exp(_POWER_SPREAD * float(torch.randn((), generator=generator)))
        one = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        about = _CHANNEL_SPREAD * one if center is None else center
        inputs = _inputs_about(about, field, scale * power)
        kinds.append(_logits_with_mean(observation, model, revealed, inputs))
    every = torch.stack(kinds).mean(dim=1)
    spread = (every - every.mean(dim=0)).T / math.sqrt(len(every) - 1)
    spread *= float(stdtrit(len(every) - 1, 0.975)) / NORMAL_QUANTILE
    shared = spread.new_zeros(len(spread), 1)
    if revealed is not None:
        about = torch.zeros(shape) if center is None else center
        few = _inputs_about(about, middle[:_FEW], power)
        shared = _changes(observation, model, revealed, few)
    return summary(torch.cat(kinds), spread, shared, dummies)


def _revealed(
    observation: Observation,
    model: nn.Module,
    pooled: MeanLogits,
    field: Float[Tensor, "samples ..."],
    power: float,
) -> _Revealed | None:
    """The mean input of the first layer that takes vectors, if its gradient is there."""
    found = first_vector_layer(observation, model, field[:2])
    if found is None:
        return None
    name, layer = found
    at_input = layer is first_layer(model)
    gradient = gradient_of_layer(observation, name, layer, needed=at_input)
    if gradient is None:
        return None
    shape = field.shape[1:]
    start = gradient.simple_mean(pooled.noise).cpu().view(shape) if at_input else torch.zeros(shape)
    typical = _inputs_about(start, field, power)
    mean = mean_input(observation, model, layer, gradient, pooled, typical)
    return _Revealed(layer, mean, mean.values.cpu().view(shape) if at_input else None)


def _inputs_about(
    center: Tensor, field: Float[Tensor, "samples *shape"], power: float
) -> Float[Tensor, "samples *shape"]:
    """Inputs of that mean and, if the mean leaves room for it, that mean square; float32."""
    rest = max(power - float(center.square().mean()), _LEAST_POWER * power)
    inputs: Tensor = center.float() + rest**0.5 * field
    return inputs


def _logits_with_mean(
    observation: Observation, model: nn.Module, revealed: _Revealed | None, inputs: Tensor
) -> Float[Tensor, "samples classes"]:
    """Logits of inputs, of which the revealed layer is fed the revealed mean."""
    if revealed is None or revealed.center is not None:
        return logits_of(observation, model, inputs)
    before = entering(model, revealed.layer, inputs).mean(dim=0)
    with mean_set(revealed.layer, before, revealed.mean.values):
        return logits_of(observation, model, inputs)


def _changes(
    observation: Observation, model: nn.Module, revealed: _Revealed, inputs: Tensor
) -> Float[Tensor, "classes draws"]:
    """Changes of the mean logits by errors of the revealed mean; squares sum to a variance."""
    layer, (values, errors), center = revealed
    before = None if center is not None else entering(model, layer, inputs).mean(dim=0)

    def at(error: Tensor) -> Tensor:
        if before is None:
            moved = inputs + error.view(inputs.shape[1:]).to(inputs)
            return logits_of(observation, model, moved).mean(dim=0)
        with mean_set(layer, before, values + error):
            return logits_of(observation, model, inputs).mean(dim=0)

    right = at(torch.zeros_like(values))
    changes = torch.stack([at(error) - right for error in errors.T], dim=1)
    return changes / math.sqrt(errors.shape[1])
