"""Counts of classes from the bias gradient, where the residual of each class is a function's.

With the residual R_c of a sample of class c at the batch's mean logits, the mean residual is
``D db / K = sum_c s_c R_c`` for the shares s of the classes. They sum to one, which settles them
where all residuals sum to zero over the outputs.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

from labelleak.attacks.certainty import share_right
from labelleak.attacks.conclusion import conclude
from labelleak.attacks.multi_label.label_logits import (
    LabelLogits,
    bias_of_labels,
    divisor_of_one,
    pooled_rows,
)
from labelleak.attacks.zero_head import (
    only_counted_have_own,
    predicts_the_same,
    proven_within,
    relative_rounding,
)
from labelleak.errors import MissingKnowledge
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Flag, Restoration

# Classes whose residuals differ by less, relative to the most that they differ, are not told apart.
_LEAST_DIFFERENCE = 1e-6
# If rounding is expected to get a smaller share of the counts right, they are flagged as guesses.
_RIGHT = 0.75
# Rows that leave fewer residuals than this tell no error.
_FEWEST_ROWS = 2
# Classes above which fewer replicates are computed, and how many.
_MANY, _FEW_REPLICATES = 64, 16
# Draws whose residuals are computed at once.
_AT_ONCE = 8


class _Solution(NamedTuple):
    """Shares, and how they move with the mean residual.

    Attributes:
        shares: Shape (classes,), summing to one.
        inverse: Change of the shares by one of the mean residual, shape (classes, outputs).
    """

    shares: Float[Tensor, " classes"]
    inverse: Float[Tensor, "classes outputs"]


def mapped_counts(observation: Observation) -> Restoration:
    """Counts under a loss of the user's that takes class indices.

    The head turns the batch's mean embedding, which all rows of its gradient show, into mean
    logits, and autograd these into the residual of every class.

    Args:
        observation: Of such a loss.

    Returns:
        Counts, with standard errors where the network is not seen to have learned and there are
        rows enough; certified where the head is zero.

    Raises:
        MissingKnowledge: There is no bias gradient, a summed loss has no batch size, or the loss
            does not tell the classes apart here.
    """
    bias, total = bias_of_labels(observation), observation.num_instances
    seen = divisor_of_one(observation) * bias
    if predicts_the_same(observation) and bool(bias.any()):
        return _of_a_zero_head(observation, seen)
    rows = pooled_rows(observation, bias)
    first = observation.loss.class_residuals(rows.logits[None])[0]
    plain = _solved(first, seen)
    found = rows.scattered(observation, *_spread(first, plain.shares, seen))
    if observation.classes > _MANY:
        found = found._replace(
            replicates=found.replicates[:, :_FEW_REPLICATES],
            samples=found.samples[:, :_FEW_REPLICATES],
        )
    mean = torch.zeros_like(first)
    drawn = torch.zeros_like(seen)
    for part in _sampled(observation, found):
        mean += part.sum(dim=0)
        drawn += _drawn(part - first, plain).sum(dim=0)
    draws = 2 * found.samples.shape[1]
    shifted = _solved(mean / draws, seen)
    raw = shifted.shares * (total or 1)
    variance = _student(observation) ** 2 * (
        _moved(observation, found, shifted, first) + drawn / draws / (total or 1)
    )
    # The shift counts as an error of its own size.
    variance += (shifted.shares - plain.shares).square()
    variance += _rounding(observation, shifted.inverse).square()
    errors = (total or 1) * variance.sqrt()
    known = (
        not (found.has_learned or observation.head.per_pixel)
        and _rows_left(observation) >= _FEWEST_ROWS
    )
    flags: tuple[Flag, ...] = ()
    if total is not None:
        flags = (Flag.NOT_INTEGRAL,) if share_right(errors) < _RIGHT else ()
    told = errors if known else None
    return conclude(observation, raw, total, standard_errors=told, errors=told, flags=flags)


def mean_probabilities(observation: Observation) -> Float[Tensor, " classes"]:
    """Softmax of the batch's mean logits, which tells whether the network favors some classes."""
    return torch.softmax(pooled_rows(observation, bias_of_labels(observation)).logits, dim=0)


def _solved(
    residuals: Float[Tensor, "classes outputs"], seen: Float[Tensor, " outputs"]
) -> _Solution:
    """The shares of which the mean residual is nearest to the one seen.

    Raises:
        MissingKnowledge: Some mixtures of classes have the same residual.
    """
    apart = residuals - residuals.mean(dim=0)
    sizes = torch.linalg.svdvals(apart)
    classes = len(residuals)
    if not float(sizes[: classes - 1].min()) > _LEAST_DIFFERENCE * float(sizes[0]):
        raise MissingKnowledge(
            "the loss has the same derivative for several mixtures of classes at the batch's mean "
            "logits: the bias gradient does not tell them apart"
        )
    inverse = torch.linalg.pinv(apart.T, rtol=_LEAST_DIFFERENCE)
    shares = 1.0 / classes + inverse @ (seen - residuals.mean(dim=0))
    return _Solution(shares, inverse)


def _spread(
    residuals: Float[Tensor, "classes outputs"],
    shares: Float[Tensor, " classes"],
    seen: Float[Tensor, " outputs"],
) -> tuple[float, float]:
    """Variance of samples' residuals along the mean one, and that along all outputs."""
    shares = shares.clamp_min(1e-3 / len(shares))
    shares = shares / shares.sum()
    around = residuals - shares @ residuals
    along = around @ seen / seen.norm().clamp_min(1e-300)
    return float(shares @ along.square()), float(shares @ around.square().sum(dim=1))


def _sampled(
    observation: Observation, found: LabelLogits
) -> Iterator[Float[Tensor, "draws classes outputs"]]:
    """Residuals of every class for samples that scatter about the mean logits, draw by draw."""
    mean = found.logits[:, None]
    either = torch.cat([mean + found.samples, mean - found.samples], dim=1).T
    for part in torch.split(either, _AT_ONCE):
        yield observation.loss.class_residuals(part)


def _drawn(
    moved: Float[Tensor, "draws classes outputs"], solution: _Solution
) -> Float[Tensor, "draws classes"]:
    """Variance of the shares by which samples of a class have the batch's residuals by chance.

    Residuals change with a sample's own logits. Where they change alike for all classes, the mean
    logits tell how much; what differs from class to class depends on which samples have which.

    Args:
        moved: Residuals of single samples less those at the mean logits.
        solution: The shares.
    """
    shares = solution.shares.clamp_min(0.0)
    apart = moved - (shares @ moved)[:, None, :]
    return shares @ (apart @ solution.inverse.T).square()


def _moved(
    observation: Observation,
    found: LabelLogits,
    solution: _Solution,
    residuals: Float[Tensor, "classes outputs"],
) -> Float[Tensor, " classes"]:
    """Mean square by which errors of the mean logits move the shares, to the first order."""
    shares = solution.shares
    moved = [
        shares @ (observation.loss.class_residuals(part) - residuals)
        for part in torch.split(found.replicates.T, _AT_ONCE)
    ]
    return (torch.cat(moved) @ solution.inverse.T).square().mean(dim=0)


def _rows_left(observation: Observation) -> int:
    """Residuals that the rows leave beside the mean embedding."""
    classes = observation.classes
    return classes - 1 - int(observation.loss.sums_vanish(classes))


def _student(observation: Observation) -> float:
    return float(stdtrit(max(_rows_left(observation), 1), 0.975)) / NORMAL_QUANTILE


def _rounding(
    observation: Observation, inverse: Float[Tensor, "classes outputs"]
) -> Float[Tensor, " classes"]:
    """Error of the shares that rounding of the bias gradient makes."""
    gradient = observation.gradient
    noise = gradient.rounding
    if gradient.bias is not None:
        noise = max(noise, implied_rounding(gradient.bias))
    errors: Tensor = divisor_of_one(observation) * noise * inverse.norm(dim=1)
    return errors


def _of_a_zero_head(observation: Observation, seen: Float[Tensor, " outputs"]) -> Restoration:
    """The counts of a head that predicts the same for every sample, up to rounding."""
    bias, total = observation.head.bias, observation.num_instances
    assert bias is not None, "has a bias"
    residuals = observation.loss.class_residuals(bias.double()[None])[0]
    found = _solved(residuals, seen)
    unit = relative_rounding(observation) * float(residuals.abs().max())
    errors = (total or 1) * unit * found.inverse.abs().sum(dim=1)
    errors = torch.maximum(errors, (total or 1) * _rounding(observation, found.inverse))
    raw = (total or 1) * found.shares
    counted = conclude(observation, raw, total, standard_errors=errors, errors=errors)
    if counted.counts is None:
        return counted
    if not _rows_confirm(observation, residuals, counted.counts):
        return replace(counted, flags=(*counted.flags, Flag.COUNTS_NOT_SURE))
    return proven_within(counted, float(errors.max()))


def _rows_confirm(
    observation: Observation,
    residuals: Float[Tensor, "classes outputs"],
    counts: Int[Tensor, " classes"],
) -> bool:
    """Whether the weight's gradient is of samples of the counted classes, and of no others.

    It is ``R^T S`` with the residuals R and the sums S of the classes' embeddings, zero for classes
    without samples. If a mixture a of the classes has no residual, sums are known up to the same
    vector times a: divided by a, they are the same for all classes without samples.
    """
    weight = observation.gradient.weight.double()
    left, sizes, right = torch.linalg.svd(residuals.T, full_matrices=False)
    known = sizes > _LEAST_DIFFERENCE * sizes[0]
    inverse = (right[known].T / sizes[known]) @ left[:, known].T
    sums, counted = inverse @ weight, counts
    errors = inverse.norm(dim=1) * relative_rounding(observation) * float(weight.norm())
    if bool(known.all()):
        # One more class, which has no samples.
        sums, errors = (torch.cat([one, torch.zeros_like(one[:1])]) for one in (sums, errors))
        counted = torch.cat([counts, torch.zeros_like(counts[:1])])
    else:
        # Not zero, which nothing may be divided by.
        mixture = right[-1].abs().clamp_min(1e-300)
        sums, errors = right[-1].sign()[:, None] * sums / mixture[:, None], errors / mixture
    return only_counted_have_own(sums, errors, counted)
