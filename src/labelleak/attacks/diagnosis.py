"""What a gradient shows by itself, whatever attack reads it: computed once per observation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.likely_loss import sums_are_of_samples
from labelleak.loss import CUSTOM
from labelleak.numerics import implied_rounding, machine_epsilon, root_mean_square, row_blocks
from labelleak.observation import Observation
from labelleak.restoration import Flag

# Share of the gradient's norm up to which sums over the classes count as zero, and the largest
# share that rounding may explain, as in half precision.
_SUM_TOLERANCE = 1e-3
_ROUNDED_SUM_TOLERANCE = 0.1
# Share of nonzero sums that weight decay may leave unexplained.
_UNDECAYED = 0.1
# From this share of zeros on, in rows and columns that are not empty, a gradient is pruned.
_PRUNED = 0.01
# Steps of a 16-bit grid on either side of zero, and entries too few to rule out chance.
_MOST_STEPS = 1 << 15
_FEWEST_ENTRIES = 32
# Entries to look at first: those of a gradient without a grid have more levels than a grid.
_TELLING = 1 << 17
# Entries, spread over a large gradient, that show whether zeros are those of inactive features.
_SPREAD = 1 << 12
# Margins below the least entry of an absent class, for certainty: in standard deviations of the
# noise, and as a share of the largest entry for rounding.
_DEVIATIONS = 6.0
_ROUNDING_SHARE = 1e-5


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What a gradient shows by itself.

    Attributes:
        sums_are_zero: Whether it sums to zero over the classes, but for rounding.
        is_treated: Whether it shows a defense: noise, sparsification, signs or quantization. Not
            clipping, which scales all of it: only an estimate of the counts shows that.
        certain: Classes that are certainly in the batch, bool, shape (classes,). All False without
            a bias gradient, or for a summed loss without a batch size.
        flags: Flags of the gradient and of what is not known, whatever attack reads it.
    """

    sums_are_zero: bool
    is_treated: bool
    certain: Bool[Tensor, " classes"]
    flags: frozenset[Flag]


def diagnose(observation: Observation) -> Diagnosis:
    """Diagnose the head's gradient, in a few passes and with memory for a part of it."""
    weight, bias = observation.gradient.weight, observation.gradient.bias
    sums = class_sums(weight)
    # Sigmoids have no sums that vanish: what was added to their gradient does not show there.
    zero = _sums_are_zero(observation, sums)
    have_sums = not observation.loss.sums_vanish(observation.classes)
    undisturbed = have_sums or zero
    # An adaptive optimizer alone explains all of it.
    treated = observation.training.is_sgd and (
        (not undisturbed and not _decayed(observation, sums))
        or _pruned(weight, sums, observation.gradient.rounding)
        or any(_on_a_grid(tensor) for tensor in (weight, bias) if tensor is not None)
    )
    raised = {
        Flag.SUMS_NOT_ZERO: not undisturbed,
        Flag.LOOKS_LIKE_SIGMOIDS: not undisturbed and sums_are_of_samples(observation),
        Flag.LOOKS_LIKE_SOFTMAX: have_sums and zero,
        Flag.DEFENSE_SUSPECTED: treated,
        Flag.NO_BIAS: not observation.has_bias,
        Flag.NO_WEIGHT: not observation.gradient.has_weight,
        Flag.SEVERAL_STEPS: observation.local_steps > 1,
        Flag.ADAPTIVE_OPTIMIZER: not observation.training.is_sgd,
        Flag.UNKNOWN_BATCH_SIZE: observation.batch_size is None,
    }
    flags = frozenset(flag for flag, is_raised in raised.items() if is_raised)
    return Diagnosis(undisturbed, treated, _certain_classes(observation, sums), flags)


def class_sums(gradient: Float[Tensor, "classes features"]) -> Float[Tensor, " features"]:
    """Sum over the classes for every feature, float64."""
    # A product in the gradient's own precision: a sum in float64 takes ten times as long, and
    # rounding is far below the tolerance.
    return (gradient.new_ones(gradient.shape[0]) @ gradient).double()


def gradient_noise(
    gradient: Float[Tensor, "classes features"], sums: Float[Tensor, " features"] | None = None
) -> float:
    """Standard deviation of independent noise in an entry, from sums that are zero without it.

    Args:
        gradient: Gradient of the head's weight.
        sums: Its `class_sums`, where they are at hand.
    """
    sums = class_sums(gradient) if sums is None else sums
    return float(sums.norm()) / float(gradient.numel() ** 0.5)


def _sums_are_zero(observation: Observation, sums: Float[Tensor, " features"]) -> bool:
    """Whether the gradient sums to zero over the classes, but for rounding."""
    gradient, bias = observation.gradient, observation.gradient.bias
    if _off_zero(sums, gradient.weight, gradient.size, lambda: gradient.rounding):
        return False
    # The rounding of a difference of weights is about that of a difference of biases.
    return bias is None or not _off_zero(
        class_sums(bias[:, None]),
        bias,
        root_mean_square(bias),
        lambda: max(gradient.rounding, implied_rounding(bias)),
    )


def _off_zero(
    sums: Float[Tensor, " features"],
    gradient: Tensor,
    size: float,
    rounding: Callable[[], float],
) -> bool:
    """Whether sums over the classes are more than rounding errors leave.

    For independent noise of one size in every entry, the norm of the sums relative to that of the
    gradient is the share of the noise.
    """
    if not size:
        return False
    share = float(sums.norm()) / size / float(gradient.numel() ** 0.5)
    if share <= _SUM_TOLERANCE:
        return False
    return share > min(rounding() / size, _ROUNDED_SUM_TOLERANCE)


def _decayed(observation: Observation, sums: Float[Tensor, " features"]) -> bool:
    """Whether weight decay explains that the sums over the classes are not zero.

    Decay adds a multiple of the head's own weight, and to the sums the same multiple of its sums.
    """
    gradient, head = observation.gradient, observation.head
    decay = class_sums(head.weight)
    bias = gradient.bias
    if bias is not None and head.bias is not None:
        sums = torch.cat([sums, class_sums(bias[:, None])])
        decay = torch.cat([decay, class_sums(head.bias[:, None])])
    left = sums - decay * (sums @ decay / decay.square().sum().clamp_min(1e-300))
    return float(left.norm()) <= _UNDECAYED * float(sums.norm())


def _pruned(
    weight: Float[Tensor, "classes features"], sums: Float[Tensor, " features"], rounding: float
) -> bool:
    """Whether entries were set to zero.

    An inactive feature leaves a column of zeros, and a class without any probability a row. Other
    zeros are underflow or pruning. With underflow, the smallest entries that are left are about as
    large as a rounding error.
    """
    if _zeros_are_inactive_features(weight, sums):
        return False
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    if not zeros:
        return False
    classes, features = weight.shape
    rows, columns = 0, torch.zeros(features, device=weight.device)
    for part in row_blocks(weight):
        filled = (part != 0).float()
        rows += int((filled @ filled.new_ones(features) > 0).sum())
        columns += filled.new_ones(len(filled)) @ filled
    empty_rows, empty_columns = classes - rows, int((columns == 0).sum())
    zeros -= empty_rows * features + empty_columns * (classes - empty_rows)
    if zeros <= _PRUNED * rows * (features - empty_columns):
        return False
    least = min(
        float(torch.where(part == 0, torch.inf, part.abs()).min()) for part in row_blocks(weight)
    )
    return least > 4.0 * rounding


def _zeros_are_inactive_features(
    weight: Float[Tensor, "classes features"], sums: Float[Tensor, " features"]
) -> bool:
    """Whether all zeros stand in columns of zeros, as far as a part of a large gradient shows.

    A percent of zeros elsewhere would be seen about forty times in that part.
    """
    classes, features = weight.shape
    if weight.numel() <= _SPREAD:
        zeros = weight == 0
        return torch.equal(zeros.any(dim=0).expand_as(zeros), zeros)
    places = torch.arange(_SPREAD, device=weight.device)
    # Every row in turn, and columns by the golden ratio, which come to lie evenly.
    rows = places * classes // _SPREAD
    columns = (places * 0.618033988749895 % 1.0 * features).long().clamp_max(features - 1)
    zeros = weight[rows, columns] == 0
    empty = torch.zeros_like(sums, dtype=torch.bool).index_fill(0, columns[zeros], True)
    return torch.equal(empty[columns], zeros) and not bool(sums[empty].any())


def _on_a_grid(tensor: Tensor) -> bool:
    """Whether all entries are small multiples of one step: signs, or a quantization grid.

    The step is the least magnitude that occurs, or the least difference of two magnitudes.
    """
    if tensor.numel() < _FEWEST_ENTRIES:
        return False
    # A few rows nearly always suffice; all of a large head would double the memory.
    rows = 1 + _TELLING * len(tensor) // tensor.numel()
    if _has_many_levels(tensor[:rows]):
        return False
    if rows < len(tensor) and len(torch.unique(tensor[:rows].abs())) > 1 + _MOST_STEPS:
        return False
    magnitudes = tensor.abs().flatten().sort().values.double()
    largest = float(magnitudes[-1])
    steps = magnitudes.diff(prepend=magnitudes.new_zeros(1))
    # Levels that differ by rounding only are equal.
    apart = steps[steps > 1e-5 * largest]
    if not largest or largest > 1.01 * _MOST_STEPS * float(apart.min()):
        return False
    step = float(apart.min())
    levels = magnitudes[steps > 0]
    if len(levels) > _MOST_STEPS or int(torch.count_nonzero(magnitudes)) < _FEWEST_ENTRIES:
        return False
    # The least difference is a rough step: larger and larger levels refine it.
    for reach in (30.0, 1e3, 4e4):
        near = levels[levels < reach * step]
        if not near.numel():
            return False
        multiples = (near / step).round()
        step = float(near @ multiples / multiples.square().sum().clamp_min(1.0))
    off = (levels / step - (levels / step).round()).abs()
    # By chance, the distance from whole numbers would be a quarter on average.
    if float(off.max()) >= 0.05:
        return False
    # Half precision itself is a grid near its smallest numbers.
    half = torch.finfo(torch.float16)
    return step > 2.0 * half.smallest_normal * half.eps or machine_epsilon(tensor) < half.eps


def _has_many_levels(tensor: Tensor) -> bool:
    """Whether entries certainly have more magnitudes than a grid: they differ in their last bits.

    In single precision, which makes magnitudes equal and never different.
    """
    if tensor.numel() <= _MOST_STEPS:
        return False
    last_bits = tensor.flatten().float().view(torch.int32) & (_TELLING - 1)
    found = torch.bincount(last_bits, minlength=_TELLING)
    return int(torch.count_nonzero(found)) > _MOST_STEPS


def _certain_classes(
    observation: Observation, sums: Float[Tensor, " features"]
) -> Bool[Tensor, " classes"]:
    """Classes that are proven; none without a scale, under another optimizer, nor of labels."""
    unknown_scale = observation.batch_size is None and not observation.loss.averages
    is_sgd = observation.training.is_sgd
    if unknown_scale or not is_sgd:
        return torch.zeros(observation.classes, dtype=torch.bool, device=sums.device)
    return proven_classes(observation, observation.scale, sums)


def proven_classes(
    observation: Observation, scale: float, sums: Float[Tensor, " features"] | None = None
) -> Bool[Tensor, " classes"]:
    """Classes that must be in the batch, because no absent class has such a bias gradient.

    ``db_i = p_i - n_i / K`` is negative only if class i is present; label smoothing shifts that
    bound. The sums over the classes, zero without noise, show the size of the noise.

    Args:
        observation: What the server sees; without a bias gradient nothing is proven, nor of labels
            or under a loss of the user's.
        scale: How many times larger the gradient is than that of the mean loss.
        sums: `class_sums` of the weight gradient, where they are at hand.

    Returns:
        bool, shape (classes,).
    """
    gradient, loss, classes = observation.gradient, observation.loss, observation.classes
    if gradient.bias is None or loss.is_multi_label or loss.kind in CUSTOM:
        return torch.zeros(classes, dtype=torch.bool, device=gradient.weight.device)
    bias = gradient.bias.double() / scale
    bound: Tensor | float = 0.0
    if loss.label_smoothing:
        weights, divisors = loss.weights(classes, bias), loss.divisor_weights(classes, bias)
        bound = loss.label_smoothing / classes * weights / divisors.min()
    noise = gradient_noise(gradient.weight, sums) / scale
    proven: Tensor = bias < -bound - _DEVIATIONS * noise - _ROUNDING_SHARE * bias.abs().max()
    return proven
