"""A head of zero weight predicts the same for every input: its first gradient gives counts."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

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
    counts follow from the bias gradient up to its rounding. At another scale than was told, counts
    may be whole as well: nothing is proven where the weight's gradient has other classes. Where all
    classes are there, or all but one, it cannot tell, no more than a batch size wrong by a factor.

    Args:
        observation: What the server sees.
        found: Real-valued counts of an attack that takes the head's prediction for the batch's.
    """
    bias, raw, counts = observation.gradient.bias, found.raw, found.counts
    if raw is None or counts is None or not predicts_the_same(observation):
        return found
    if observation.batch_size is None or bias is None:
        return found
    # Without a bias gradient the batch may be balanced, or the bias frozen.
    if not bool(bias.any()) or not _rows_confirm(observation, counts):
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


def _rows_confirm(observation: Observation, counts: Int[Tensor, " classes"]) -> bool:
    """Whether the weight's gradient has rows of its own for the classes that are counted alone.

    Rows over the prediction are the same for all classes without samples. Those of others are too
    if their samples have the same sum of embeddings, which is no more than possible. Labels of
    which a sample has several make no such rows.
    """
    weight, bias = observation.gradient.weight, observation.head.bias
    if observation.loss.is_multi_label:
        return True
    assert bias is not None, "checked"
    prediction = torch.softmax(bias.double(), dim=0)
    largest = float(weight.norm(dim=1).max())
    errors = _DIFFERENT * relative_rounding(observation) * largest / prediction
    # Rows that are the same have the same product with any vector.
    random = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    random = torch.nn.functional.normalize(random, dim=0).to(weight)
    products = (weight @ random).double() / prediction
    absent = (counts == 0).nonzero()[:, 0]
    if len(absent):
        first = absent[products[absent].argsort()[len(absent) // 2]]
        off = (products[absent] - products[first]).abs()
        if not bool((off <= errors[absent] + errors[first]).all()):
            return False
        absent = first[None]
    own = torch.cat([(counts > 0).nonzero()[:, 0], absent])
    own = own[products[own].argsort()]
    rows = weight[own].double() / prediction[own, None]
    return bool((rows.diff(dim=0).norm(dim=1) > errors[own][1:] + errors[own][:-1]).all())


def _largest_residual(observation: Observation) -> float:
    """Largest residual, relative to the difference that one label more or less makes."""
    loss, bias = observation.loss, observation.head.bias
    assert bias is not None, "checked"
    if loss.is_multi_label:
        zero, one = loss.binary_residuals(bias.double())
        return float((torch.maximum(zero, -one) / (zero - one)).max())
    weights = loss.sample_weights(torch.softmax(bias.double(), dim=0)[:, None])
    return float(weights.max() / weights.min())
