"""A head of zero weight predicts the same for every input: its first gradient gives counts."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.attacks.diagnosis import diagnose
from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction
from labelleak.numerics import machine_epsilon
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

# Epsilons of a residual for each sample by which rounding moves a sum of them.
_ROUNDING = 4.0

# Rows differ by more than so many times their rounding.
_DIFFERENT = 10.0

# Counts are proven if they are as near to whole ones as rounding leaves them, if that is little.
_LARGEST = 0.02


def predicts_the_same(observation: Observation) -> bool:
    """Whether the head's prediction does not depend on the input, and the update is its first."""
    weight = observation.head.weight
    first = observation.local_steps == 1 and observation.has_bias
    return first and not bool(weight[:1].any()) and not bool(weight.any())


def known_prediction(observation: Observation) -> MeanPrediction:
    """The prediction for every input, of a head that `predicts_the_same`, under a softmax.

    Without known errors where the bias gradient vanishes: it may be frozen.
    """
    head, bias = observation.head, observation.gradient.bias
    assert head.bias is not None, "has a bias"
    assert bias is not None, "has its gradient"
    prediction = torch.softmax(head.bias.double(), dim=0)
    return MeanPrediction(
        prediction,
        prediction[:, None].repeat(1, 2),
        bias.double(),
        noise=relative_rounding(observation),
        has_errors=bool(bias.any()),
    )


def proven_by_zeros(observation: Observation, found: Restoration) -> Restoration:
    """The restoration, certified where the head's weight is zero, as where training starts at zero.

    The prediction is then that of the head's bias for every sample, whatever the data, and the
    counts follow from the bias gradient up to its rounding. Of a gradient that shows a defense
    nothing is proven, nor where the weight's gradient does not confirm which classes there are: at
    another scale than was told, counts may be whole as well.

    Args:
        observation: What the server sees.
        found: Real-valued counts of an attack that takes the head's prediction for the batch's.
    """
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if raw is None or counts is None or not predicts_the_same(observation):
        return found
    if observation.batch_size is None or bias is None or diagnose(observation).is_treated:
        return found
    # It may be balanced, or that of a bias that is frozen.
    if not bool(bias.any()) or not _rows_tell_classes_apart(observation, counts):
        return replace(found, flags=(*found.flags, Flag.COUNTS_NOT_SURE))
    # Residuals of both signs add up to the bias gradient: rounding is that of the single ones.
    error = relative_rounding(observation) * (observation.num_instances or 1)
    return proven_within(found, error * _largest_residual(observation))


def proven_within(found: Restoration, error: float) -> Restoration:
    """The restoration, certified if its counts are as near to whole ones as an error leaves them.

    Args:
        found: Real-valued counts, and whole ones.
        error: Largest error that rounding makes.
    """
    if found.raw is None or found.counts is None:
        return found
    apart = float((found.raw - found.counts).abs().max())
    if error > _LARGEST or apart > error:
        return found
    return replace(found, certified=True, flags=())


def relative_rounding(observation: Observation) -> float:
    """Rounding error of a residual, relative to it: that of the format, and of the weights sent."""
    gradient = observation.gradient
    own = _ROUNDING * machine_epsilon(gradient.weight)
    return max(own, gradient.rounding / gradient.size) if gradient.size else own


def _rows_tell_classes_apart(observation: Observation, counts: Int[Tensor, " classes"]) -> bool:
    """Whether each class that is counted has a row of its own in the weight's gradient.

    Rows over the prediction are the same for all classes without samples. Those of others are too
    if their samples have the same sum of embeddings, which is no more than possible. A weight that
    is not sent tells nothing, nor do labels of which a sample has several.
    """
    gradient, bias = observation.gradient, observation.head.bias
    if observation.loss.is_multi_label or not gradient.has_weight:
        return True
    assert bias is not None, "checked"
    rows = gradient.weight.double() / torch.softmax(bias.double(), dim=0)[:, None]
    absent = (counts == 0).nonzero()[:1, 0]
    rows = rows[torch.cat([(counts > 0).nonzero()[:, 0], absent])]
    # Rows that differ have different products with a random vector.
    random = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows)
    apart = (rows @ random).sort().values.diff().abs()
    error = relative_rounding(observation) * float(rows.norm(dim=1).max())
    return bool((apart > _DIFFERENT * error).all())


def _largest_residual(observation: Observation) -> float:
    """Largest residual, relative to the difference that one label more or less makes."""
    loss, bias = observation.loss, observation.head.bias
    assert bias is not None, "checked"
    if loss.is_multi_label:
        zero, one = loss.binary_residuals(bias.double())
        return float((torch.maximum(zero, -one) / (zero - one)).max())
    weights = loss.sample_weights(torch.softmax(bias.double(), dim=0)[:, None])
    return float(weights.max() / weights.min())
