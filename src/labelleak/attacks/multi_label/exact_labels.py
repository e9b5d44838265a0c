"""Every sample's label set, with a certificate: residuals that are those of zeros and ones."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.low_rank import LowRank, decompose
from labelleak.attacks.exact.sparsity import sparse_directions
from labelleak.attacks.multi_label.label_logits import bias_of_labels
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Rounds of guesses without a new sample, after which the search ends.
_PATIENCE = 8
# A residual may be this far from that of its target, relative to the distance of the two targets'.
_MOST_APART = 0.05
# Chance that residuals are as near to those of zeros and ones as they are.
_LUCK = 1e-6
# Label sets that are tried for an embedding differ from the prediction in some of so many labels,
# and have residuals this near to the column space.
_TRIED, _NEAR = 14, 1e-3
# Floor of a distance: that of arithmetic in single precision.
_LEAST_OFF = 1e-6
# One less the cosine of embeddings that are the same.
_SAME = 1e-6


@dataclass(frozen=True)
class _Batch:
    """Samples that rebuild a gradient: inputs [e, 1], and whether each has each label."""

    inputs: Float[Tensor, "samples columns"]
    label_sets: Bool[Tensor, "samples labels"]


def exact_labels(observation: Observation, clock: Clock, generator: torch.Generator) -> Restoration:
    """Restore the embedding and the label set of every sample, and prove them.

    The head's gradient is ``sum_k r_k [e_k, 1]^T / D``, of rank K. Behind a ReLU, the embeddings
    are the sparse vectors of its row space. Once all are found, every residual follows by a linear
    system, and has to be that of a label which is there or of one which is not, given the head's
    prediction for the embedding: in all entries of all samples.

    Args:
        observation: Of a loss with a sigmoid for each label, with the batch size and the bias.
        clock: When the search ends.
        generator: Source of the guesses.

    Returns:
        Certified counts, with `Restoration.label_sets` and `Restoration.embeddings`, ordered by the
        sum of the embeddings.

    Raises:
        MissingKnowledge: The batch size or the bias is not known, the rank tells no samples apart,
            or not all were found and proven.
    """
    size, bias = observation.batch_size, bias_of_labels(observation)
    if size is None:
        raise MissingKnowledge("exact restoration of label sets needs the batch size")
    labels, features = observation.classes, observation.head.features
    most = min(labels, features + 1) - 1
    if size > most:
        raise MissingKnowledge(
            f"exact restoration of label sets needs a batch of at most {most} samples here: fewer "
            "than labels, and no more than features"
        )
    divisor = observation.loss.divisor_of_labels(size, labels)
    matrix = divisor * torch.cat([observation.gradient.weight.double(), bias[:, None]], dim=1)
    found = decompose(matrix, size, generator)
    # What samples leave of the gradient has fewer entries than it: all of them are errors.
    entries = (labels - size) * max(features + 1 - size, 1)
    unexplained = found.noise * matrix.numel() ** 0.5
    found = replace(found, noise=max(unexplained / entries**0.5, _least_noise(found, matrix)))
    loud = tolerances.RANK_MARGIN * found.noise * sum(side**0.5 for side in matrix.shape)
    if float(found.values.min()) <= loud:
        raise MissingKnowledge(
            f"the gradient does not show {size} samples: some leave no trace at its precision, or "
            "are there twice"
        )
    if unexplained > tolerances.UNEXPLAINED * float(matrix.norm()):
        raise MissingKnowledge(
            "exact restoration needs a gradient without noise, and the right batch size: more is "
            f"left of this one than {size} samples explain"
        )
    batch = _proven(observation, found, _points(observation, found, clock, generator))
    if batch is None:
        raise MissingKnowledge("not every sample was found and proven by its residuals")
    order = batch.inputs.sum(dim=1).sort(stable=True).indices
    sets = batch.label_sets[order]
    counts = sets.sum(dim=0)
    return Restoration(
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / size,
        certified=True,
        embeddings=batch.inputs[order, :-1],
        label_sets=sets,
        certain=counts,
        invisible=0,
        multi_label=True,
        samples=size,
    )


def _least_noise(found: LowRank, matrix: Float[Tensor, "labels columns"]) -> float:
    """Error of an entry that the decomposition itself makes."""
    return tolerances.DECOMPOSITION * float(found.values.max()) / math.sqrt(max(matrix.shape))


def _points(
    observation: Observation, found: LowRank, clock: Clock, generator: torch.Generator
) -> Float[Tensor, "points rank"]:
    """Coordinates of sparse vectors that may be embeddings; the entry of the bias is one.

    Those whose residuals are at hand come first: the others lie in a smaller space then.
    """
    rows, last = found.right[:-1], found.right[-1]
    errors = (found.noise / found.values).clamp_min(1e-300)
    points, known = rows.new_zeros(0, found.rank), 0
    space, idle = torch.eye(found.rank).to(rows), 0
    while len(points) < found.rank and idle < _PATIENCE and not clock.is_over:
        directions = sparse_directions(rows, errors, space, generator)
        heights = directions @ last
        directions = directions[heights.abs() > tolerances.NO_LENGTH]
        new = directions / (directions @ last)[:, None]
        slack = tolerances.NEGATIVE * found.input_errors(new)
        new = new[(new @ rows.T >= -slack).all(dim=1)]
        before = len(points)
        points = _distinct_points(torch.cat([points, new]), found)
        residuals, sure = _likely_residuals(observation, found, points)
        points = torch.cat([points[sure], points[~sure]])
        if before < len(points) or known < int(sure.sum()) < found.rank:
            known = int(sure.sum())
            space = found.space_left(residuals[sure]) if 0 < known < found.rank else space
            idle = 0
        idle += 1
    return points


def _likely_residuals(
    observation: Observation, found: LowRank, points: Float[Tensor, "points rank"]
) -> tuple[Float[Tensor, "points labels"], Bool[Tensor, " points"]]:
    """Residuals of points that lie in the column space, and whether there are any.

    Label sets are tried that differ from the prediction in labels that it is least sure of.
    """
    weight, bias = observation.head.weight.double(), observation.head.bias
    assert bias is not None, "the attack needs it"
    logits = (points @ found.right[:-1].T) @ weight.T + bias.double()
    kept = torch.zeros_like(logits)
    sure = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    flips = _flips(logits.shape[1]).to(points.device)
    for number, one in enumerate(logits):
        predicted = one > 0
        unsure = one.abs().argsort()[: flips.shape[1]]
        sets = predicted.repeat(len(flips), 1)
        sets[:, unsure] ^= flips
        zero, there = observation.loss.binary_residuals(one)
        residuals = torch.where(sets, there, zero)
        lengths = residuals.norm(dim=1).clamp_min(1e-12)
        off = found.outside(residuals).norm(dim=1) / lengths
        whole = (residuals @ found.left) @ (points[number] / found.values)
        off = torch.maximum(off, (whole - 1.0).abs())
        best = int(off.argmin())
        kept[number], sure[number] = residuals[best], float(off[best]) < _NEAR
    return kept, sure


@lru_cache
def _flips(labels: int) -> Bool[Tensor, "sets labels"]:
    """All sets of so many labels, or of those that are tried."""
    few = min(labels, _TRIED)
    sets: Tensor = torch.arange(2**few)[:, None] >> torch.arange(few) & 1
    return sets.bool()


def _distinct_points(
    points: Float[Tensor, "points rank"], found: LowRank
) -> Float[Tensor, "distinct rank"]:
    if len(points) < 2:
        return points
    images = torch.nn.functional.normalize(points @ found.right.T, dim=1)
    same = images @ images.T > 1.0 - _SAME
    first = same.int().argmax(dim=1)
    return points[first == torch.arange(len(points), device=first.device)]


def _proven(
    observation: Observation, found: LowRank, points: Float[Tensor, "points rank"]
) -> _Batch | None:
    """The batch, if these points are its samples; None where that is not proven."""
    head, rank = observation.head, found.rank
    if len(points) < rank:
        return None
    # Found first, and with most zeros, are the likeliest.
    points = points[:rank]
    inverse, failed = torch.linalg.inv_ex(points)
    if int(failed):
        return None
    residuals = ((found.left * found.values) @ inverse).T
    inputs = points @ found.right.T
    assert head.bias is not None, "the attack needs it"
    logits = inputs[:, :-1] @ head.weight.double().T + head.bias.double()
    zero, one = observation.loss.binary_residuals(logits)
    apart = zero - one
    is_there = (residuals - one).abs() < (residuals - zero).abs()
    off = (residuals - torch.where(is_there, one, zero)).abs() / apart
    # What errors of the gradient and of the client's logits leave.
    dual = inverse.norm(dim=0)
    slips = tolerances.CLIENT_ROUNDING * inputs.norm(dim=1) * float(head.weight.norm(dim=1).max())
    errors = (found.noise * len(zero.T) ** 0.5 * dual + slips + tolerances.CLIENT_ROUNDING)[:, None]
    allowed = (tolerances.ERROR_MARGIN * errors / apart).clamp_max(_MOST_APART)
    if bool((off > allowed).any()) or _by_luck(off):
        return None
    return _Batch(inputs, is_there)


def _by_luck(off: Float[Tensor, "samples labels"]) -> bool:
    """Whether other embeddings may have residuals as near to those of zeros and ones by chance.

    Every sample has as many unknowns as there are others. The equations beyond these hold by chance
    as often as the largest distance is large, for each of all the label sets that there are.

    Args:
        off: Distance of each residual, relative to that of the two targets.
    """
    samples, labels = off.shape
    spare = samples * (labels - samples + 1)
    chance = spare * math.log(2.0 * max(float(off.max()), _LEAST_OFF))
    return chance + samples * labels * math.log(2.0) > math.log(_LUCK)
