"""A head of zero weight predicts the same for every input: its first gradient gives counts."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
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
    may be whole as well: nothing is proven where the weight's gradient has other classes. It cannot
    tell where all classes are there, or all but one, or where labels that are always there together
    are taken for absent ones; no more than it can of a batch size wrong by a factor.

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
    """Whether the weight's gradient has rows as the counted classes or labels have them.

    Rows over the residual of a sample without a class are the same for all classes that no sample
    has. Those of others are too if their samples have the same sum of embeddings, which is no more
    than possible. Of labels a sample has several, and two may always be there together: rows that
    are the same tell against the counts only where all labels are said to be there. Not looked at
    where samples lack labels.
    """
    loss, weight, bias = observation.loss, observation.gradient.weight, observation.head.bias
    assert bias is not None, "checked"
    if loss.is_multi_label and loss.masked:
        return True
    absent = (
        loss.binary_residuals(bias.double())[0]
        if loss.is_multi_label
        else torch.softmax(bias.double(), dim=0)
    )
    rows, largest = weight.double() / absent[:, None], float(weight.norm(dim=1).max())
    errors = relative_rounding(observation) * largest / absent
    if loss.is_multi_label and bool((counts == 0).any()):
        return _without_samples(rows, errors, counts) is not None
    return only_counted_have_own(rows, errors, counts)


def only_counted_have_own(
    rows: Float[Tensor, "classes features"],
    errors: Float[Tensor, " classes"],
    counts: Int[Tensor, " classes"],
) -> bool:
    """Whether classes that are counted have rows of their own, and all others the same one.

    Args:
        rows: float64.
        errors: Rounding error of each.
        counts: Of the classes.
    """
    absent = _without_samples(rows, errors, counts)
    if absent is None:
        return False
    own = torch.cat([(counts > 0).nonzero()[:, 0], absent])
    own = own[_products(rows[own]).argsort()]
    apart, errors = rows[own].diff(dim=0).norm(dim=1), _DIFFERENT * errors[own]
    return bool((apart > errors[1:] + errors[:-1]).all())


def _without_samples(
    rows: Float[Tensor, "classes features"],
    errors: Float[Tensor, " classes"],
    counts: Int[Tensor, " classes"],
) -> Int[Tensor, " one_or_none"] | None:
    """One of the classes that are not counted, if there are; None if their rows differ."""
    absent = (counts == 0).nonzero()[:, 0]
    if not len(absent):
        return absent
    products, errors = _products(rows[absent]), _DIFFERENT * errors[absent]
    first = int(products.argsort()[len(absent) // 2])
    off = (products - products[first]).abs()
    return absent[first : first + 1] if bool((off <= errors + errors[first]).all()) else None


def _products(rows: Float[Tensor, "classes features"]) -> Float[Tensor, " classes"]:
    """Products with a random vector of length one: the same of rows that are the same."""
    random = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows)
    return rows @ torch.nn.functional.normalize(random, dim=0)


def _largest_residual(observation: Observation) -> float:
    """Largest residual, relative to the difference that one label more or less makes."""
    loss, bias = observation.loss, observation.head.bias
    assert bias is not None, "checked"
    if loss.is_multi_label:
        zero, one = loss.binary_residuals(bias.double())
        return float((torch.maximum(zero, -one) / (zero - one)).max())
    weights = loss.sample_weights(torch.softmax(bias.double(), dim=0)[:, None])
    return float(weights.max() / weights.min())
