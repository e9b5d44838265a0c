"""Flags that an observation raises by itself, whatever attack reads it."""

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.numerics import implied_rounding, machine_epsilon, root_mean_square, row_blocks
from labelleak.observation import Observation
from labelleak.restoration import Flag

# Sums over the classes of more than this share of the gradient's norm are not zero; nor are those
# above what rounding leaves, which in half precision is more, up to the second share.
_SUM_TOLERANCE = 1e-3
_ROUNDED_SUM_TOLERANCE = 0.1
# More entries than this share are zero though their feature and their class are not: pruned.
_PRUNED = 0.01
# A grid of 16 bits has so many steps either side of zero; so few entries may lie on one by chance.
_MOST_STEPS = 1 << 15
_FEWEST_ENTRIES = 32
# Entries of which a gradient without a grid has more levels than that.
_TELLING = 1 << 17


def observation_flags(observation: Observation, *, models_steps: bool) -> list[Flag]:
    """Flags of the gradient, and of what is not known about it.

    Args:
        observation: What the server sees.
        models_steps: Whether the attack that spoke models several local steps.
    """
    flags = []
    undisturbed = sums_are_zero(observation)
    if not undisturbed:
        flags.append(Flag.SUMS_NOT_ZERO)
    if _treated(observation, undisturbed=undisturbed):
        flags.append(Flag.DEFENCE_SUSPECTED)
    if not observation.has_bias:
        flags.append(Flag.NO_BIAS)
    if observation.local_steps > 1 and not models_steps:
        flags.append(Flag.SEVERAL_STEPS)
    if observation.batch_size is None:
        flags.append(Flag.UNKNOWN_BATCH_SIZE)
    return flags


def sums_are_zero(observation: Observation) -> bool:
    """Whether the gradient sums to zero over the classes, but for rounding."""
    gradient = observation.gradient
    if _off_zero(gradient.weight, gradient.rounding):
        return False
    bias = gradient.bias
    # The rounding of a difference of weights is about that of a difference of biases.
    return bias is None or not _off_zero(
        bias[:, None], max(gradient.rounding, implied_rounding(bias))
    )


def class_sums(gradient: Float[Tensor, "classes features"]) -> Float[Tensor, " features"]:
    """Sum over the classes for every feature, float64."""
    # As a product, because a sum in another precision costs ten times as much; the rounding of
    # single precision is far below what is looked for.
    return (gradient.new_ones(gradient.shape[0]) @ gradient).double()


def gradient_noise(gradient: Float[Tensor, "classes features"]) -> float:
    """Standard deviation of independent noise in an entry, from sums that are zero without it."""
    return float(class_sums(gradient).norm()) / float(gradient.numel() ** 0.5)


def _off_zero(gradient: Float[Tensor, "classes features"], rounding: float) -> bool:
    """Whether sums over the classes are more than rounding errors of that size leave.

    The norm of the sums, relative to that of the gradient, is the share of independent noise of
    equal size in every entry.
    """
    size = root_mean_square(gradient)
    if not size:
        return False
    share = gradient_noise(gradient) / size
    return share > max(_SUM_TOLERANCE, min(rounding / size, _ROUNDED_SUM_TOLERANCE))


def defence_suspected(observation: Observation) -> bool:
    """Whether the head's gradient looks treated: noise, sparsification, signs or quantisation.

    Clipping scales the gradient as a whole, which only an estimate of the counts can show.
    """
    return _treated(observation, undisturbed=sums_are_zero(observation))


def _treated(observation: Observation, *, undisturbed: bool) -> bool:
    """The same, where it is known whether the sums over the classes are zero."""
    gradient = observation.gradient
    tensors = [gradient.weight] if gradient.bias is None else [gradient.weight, gradient.bias]
    return (
        (not undisturbed and not _decayed(observation))
        or _pruned(gradient.weight, gradient.rounding)
        or any(_on_a_grid(tensor) for tensor in tensors)
    )


def _decayed(observation: Observation) -> bool:
    """Whether weight decay explains that the sums over the classes are not zero.

    Decay adds a multiple of the head's own weight, and to the sums the same multiple of its sums.
    """
    gradient, head = observation.gradient, observation.head
    sums, decay = class_sums(gradient.weight), class_sums(head.weight)
    bias = gradient.bias
    if bias is not None and head.bias is not None:
        sums = torch.cat([sums, class_sums(bias[:, None])])
        decay = torch.cat([decay, class_sums(head.bias[:, None])])
    left = sums - decay * (sums @ decay / decay.square().sum().clamp_min(1e-300))
    return float(left.norm()) <= 0.1 * float(sums.norm())


def _pruned(weight: Float[Tensor, "classes features"], rounding: float) -> bool:
    """Whether entries are zero that have no reason to be.

    A feature that no sample shows leaves a column of zeros, and a class that none is taken for a
    row; any other zero is one that was too small for the number format, or put there. What is too
    small is no larger than a rounding error, and then there are entries of that size left.
    """
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


def _on_a_grid(tensor: Tensor) -> bool:
    """Whether all entries are whole multiples of one step, and few of it: signs or a grid of bits.

    The step is the least magnitude that occurs, or the least difference of two.
    """
    # Few rows tell nearly always, and all of a large head would take as much memory again.
    for part in (tensor[: 1 + _TELLING * len(tensor) // tensor.numel()], tensor):
        magnitudes = part[part != 0].abs()
        levels = torch.unique(magnitudes).double()
        if len(levels) > _MOST_STEPS:
            return False
    if magnitudes.numel() < _FEWEST_ENTRIES:
        return False
    steps = torch.cat([levels[:1], levels.diff()])
    # Levels that differ by rounding only are the same.
    steps = steps[steps > 1e-5 * float(levels[-1])]
    step = float(steps.min())
    if float(levels[-1]) > 1.01 * _MOST_STEPS * step:
        return False
    # A difference of two large levels is a rough step: it is refined by more and more of them.
    for reach in (30.0, 1e3, 4e4):
        near = levels[levels < reach * step]
        if not near.numel():
            return False
        multiples = (near / step).round()
        step = float(near @ multiples / multiples.square().sum().clamp_min(1.0))
    off = (levels / step - (levels / step).round()).abs()
    # By chance the distances from whole numbers would be a quarter on average.
    if float(off.max()) >= 0.05:
        return False
    # What underflows in half precision lies on the grid of its smallest numbers.
    half = torch.finfo(torch.float16)
    return step > 2.0 * half.smallest_normal * half.eps or machine_epsilon(tensor) < half.eps
