"""Damped restoration: a mean prediction between that of the mean embedding and an even one."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.cost import check_pooling
from labelleak.attacks.diagnosis import proven_classes
from labelleak.attacks.evidence import bias_gradient, instances
from labelleak.attacks.mean_prediction.mean_logits import mean_logits
from labelleak.attacks.mean_prediction.pooled import pooled_prediction
from labelleak.attacks.mean_prediction.raw_counts import raw_counts
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.scale import scaled
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Largest share of the pooled mean prediction, and the classes beyond two from which on it has half
# of that: with few rows, mistakes of single samples make it. Where it expects counts that scatter
# by more than those of a random batch, it has less.
_MOST, _HALF = 0.5, 4
_EXCESS = 1.0
# Logits of two classes are no longer than those of all but this share of heads as initialized.
_UNLEARNED = 1e-3
# Samples may pull so much more than each of them can: rounding, or noise.
_MARGIN = 1.05
# Sizes of entries that differ by less are one size.
_ONE_SIZE = 1.001


@register(
    "damped",
    title="damped (mean prediction between pooled's and an even one)",
    needs=(Need.WEIGHT, Need.BIAS, Need.BATCH_SIZE),
    gives=(Gives.COUNTS,),
    assumes="nothing that is known to hold: for networks that have learned, where others fail",
    reference="labelleak, documentation of the attack 'damped'; with an even mean prediction its "
    "counts are those of LLBG (Gat and Sharif, AISec 2024)",
)
def damped(observation: Observation, *, time_limit: float | None = None) -> Restoration:
    """Restore the counts of a batch from a network that may have learned.

    ``n = K (p - db)`` needs the mean prediction p. The mean embedding that the rows of the gradient
    show is then one of mistakes, and its p is too sure of what is wrong. An even p, which is what
    LLBG comes to, leaves out that networks favor some classes. In between is better than both. Two
    classes leave no rows to compare, and a head may pass for one that has learned by chance: theirs
    is the pooled one, but no surer than that of a head as it is initialized.

    A class that the bias gradient proves has at least one sample. A gradient that is larger than
    so many samples can make it is brought to the size that a batch drawn at random would have.

    Where only signs were sent, an entry of a row is the more often negative the more samples its
    class has: the normal quantile of the share of negative entries stands for the bias gradient.

    Args:
        observation: Needs the head, its gradients and the batch size.
        time_limit: Seconds; more classes than take longer are refused. None for no limit.

    Returns:
        Real-valued counts, and whole ones that sum to the number of instances.

    Raises:
        MissingKnowledge: Too many classes for the time limit.
    """
    if time_limit is not None:
        check_pooling(observation, "damped", time_limit)
    total, size, classes = instances(observation), observation.batch_size, observation.classes
    assert size is not None, "the attack needs it"
    if _shows_signs_only(observation):
        return conclude(observation, counts_of_signs(observation), total)
    if pull(observation) > _MARGIN:
        observation = scaled(observation, 1.0 / moment(observation))
    pooled = pooled_prediction(observation)
    if classes == 2:
        prediction = _limited(observation, pooled.probabilities)
    else:
        share = _MOST * (classes - 2) / (classes - 2 + _HALF)
        even = torch.full_like(pooled.probabilities, 1.0 / classes)
        # In units of the variance of counts drawn at random.
        excess = total * float((pooled.probabilities - even).square().sum())
        prediction = torch.lerp(even, pooled.probabilities, share / (1.0 + _EXCESS * excess))
    gradient = pooled.bias_gradient[:, None]
    raw = raw_counts(observation, prediction[:, None], gradient, total, size)[:, 0]
    proven = proven_classes(observation, observation.scale)
    found = conclude(observation, torch.where(proven, raw.clamp_min(1.0), raw), total)
    return replace(found, raw=raw)


def _limited(
    observation: Observation, probabilities: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """The mean prediction of two classes with its logits brought to where chance explains them."""
    bias = observation.head.bias
    offset = torch.zeros_like(probabilities) if bias is None else bias.double()
    found = mean_logits(observation)
    away = probabilities.clamp_min(1e-12).log() - offset
    away = away - away.mean()
    most = math.sqrt(float(chdtri(1, _UNLEARNED))) * found.expected
    factor = min(1.0, most / max(float(away.norm()), 1e-300))
    return torch.softmax(offset + factor * away, dim=0)


def moment(observation: Observation) -> float:
    """Impact of all samples together that the spread of the bias gradient implies.

    One for a network that knows nothing, zero for one that is right; above one where the batch is
    less even than one drawn at random.
    """
    spread = float(bias_gradient(observation).norm())
    return spread * math.sqrt(instances(observation) / (1.0 - 1.0 / observation.classes))


def pull(observation: Observation) -> float:
    """How far all samples together pull their classes' entries down: by one at most."""
    return -float(bias_gradient(observation).clamp_max(0.0).sum())


def counts_of_signs(observation: Observation) -> Float[Tensor, " classes"]:
    """Real-valued counts from the signs of the weight gradient.

    An entry of row c is about normal over the features, of a mean that falls with the samples of c.
    Features that lower the logits, as those of tanh may, are turned by the signs of the bias. Signs
    do not tell the scale: the counts scatter as those of a batch drawn at random.

    Args:
        observation: With a gradient of signs.

    Returns:
        float64, shape (classes,), summing to the number of instances.
    """
    gradient, total, classes = observation.gradient, instances(observation), observation.classes
    assert gradient.bias is not None, "the attack needs it"
    signs, of_bias = gradient.weight.sign().double(), gradient.bias.sign().double()
    turned = (of_bias @ signs).sign()
    alive = signs.abs().sum(dim=1)
    negative = (alive - signs @ turned) / 2
    quantiles = torch.special.ndtri((negative + 0.5) / (alive + 1.0))
    quantiles = quantiles - quantiles.mean()
    scatter = math.sqrt(total * (1.0 - 1.0 / classes)) / quantiles.norm().clamp_min(1e-12)
    counts: Tensor = total / classes + scatter * quantiles
    return counts


def _shows_signs_only(observation: Observation) -> bool:
    """Whether all entries of bias and weight gradient have one size each, or are zero."""
    gradient = observation.gradient
    if gradient.weight.shape[1] == 1:
        # Of two classes and one feature they always have.
        return False
    bias, weight = gradient.bias, gradient.weight
    assert bias is not None, "the attack needs it"
    # The bias first: it nearly always answers, without a pass over the weight.
    alike = _have_one_size(bias) and _have_one_size(weight)
    return alike and bool(bias.any() or weight.any())


def _have_one_size(entries: Tensor) -> bool:
    """Whether all entries that are not zero have one size."""
    sizes = entries.abs()
    sizes = sizes[sizes > 0]
    return not len(sizes) or float(sizes.max()) <= _ONE_SIZE * float(sizes.min())
