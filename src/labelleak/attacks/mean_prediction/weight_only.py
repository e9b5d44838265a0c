"""The bias gradient that an update lacks, restored from the gradient of the weight."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.mean_prediction.raw_counts import raw_counts
from labelleak.attacks.mean_prediction.regression import SMALL_HEAD
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.projection import project_to_counts

# Lengths of the mean embedding that are tried for each sign, on a logarithmic grid.
_LENGTHS = 400
# As many entries of all lengths and signs together as take less than a second.
_MOST_ENTRIES = 1 << 22
# Standard deviation of the logits at the longest one: beyond, softmax goes to a single class.
_LOGITS = 2.0
# Mean entry of the embedding over mean magnitude, from which on its sign is clear.
_ONE_SIGN = 0.3
# Search lengths within this factor of the estimate.
_NEAR = 1.25
# Mean squared distance from whole numbers at which those are no evidence: at random it is 1/12.
_WHOLE = 0.06
# Subspace iterations at most; they end where the vector moves by no more than so many roundings.
_ITERATIONS, _STILL = 6, 16.0
# Costs that differ by less are equal: a distance of a thousandth of a sample, above all rounding.
_SAME = 1e-6


def restored_bias_gradient(
    observation: Observation, length: float | None = None
) -> Float[Tensor, " classes"]:
    """The gradient that the head's bias would have.

    The weight gradient's top singular pair is ``s u v^T``, with u along the bias gradient and v
    along the mean embedding e. The length of e stays open: ``db = s u / |e|``. Too short an e makes
    counts negative, and any wrong one makes them fractions. So the cost of a length is the squared
    distance of its counts from the nearest feasible ones: whole, non-negative, of the right sum.

    Args:
        observation: With a batch size.
        length: Estimated length of e. The search then stays near it, and returns the estimate
            itself if no length makes the counts whole.

    Returns:
        The bias gradient of the best length, float64, shape (classes,), in the gradient's unit.

    Raises:
        MissingKnowledge: No batch size, without which no length has a cost.
    """
    size, total = observation.batch_size, observation.num_instances
    if size is None or total is None:
        raise MissingKnowledge(
            "a head without a bias gradient needs the batch size (batch_size=K, --batch-size K): "
            "without both, the length of the mean embedding is open"
        )
    head, gradient = observation.head, observation.gradient.weight
    left, value, right = _top_pair(gradient)
    direction = (head.weight.to(right.dtype) @ right).double()
    left, right = left.double(), right.double()
    bias = torch.zeros_like(direction) if head.bias is None else head.bias.double()
    # No entry of the bias gradient of a mean loss exceeds one. A very long e predicts a single
    # class, whose counts are whole and wrong: the longest limits the spread of the logits.
    shortest = value * float(left.abs().max()) / observation.scale
    longest = max(_LOGITS / max(float(direction.std()), 1e-12), 4.0 * shortest)
    if length is not None:
        shortest, longest = length / _NEAR, length * _NEAR
    # Embeddings after a ReLU are non-negative, which shows the sign. Otherwise both are tried, in
    # an order that does not depend on the arbitrary sign of the decomposition.
    lean = float(right.sum() / right.abs().sum())
    sign = math.copysign(1.0, lean)
    signs = (sign, -sign) if abs(lean) < _ONE_SIGN else (sign,)
    number = min(_LENGTHS, max(2, _MOST_ENTRIES // (observation.classes * len(signs))))
    lengths = torch.logspace(0, 1, number, base=longest / shortest, dtype=torch.float64)
    lengths = shortest * lengths.to(left.device)
    best, least = sign, math.inf
    for signed in [sign * near for sign in signs for near in lengths.tolist()]:
        prediction = torch.softmax(signed * direction + bias, dim=0)[:, None]
        gradient_of_bias = (value / signed * left)[:, None]
        raw = raw_counts(observation, prediction, gradient_of_bias, total, size)[:, 0]
        cost = float((raw - project_to_counts(raw, total)).square().sum())
        if cost < least - _SAME:
            best, least = signed, cost
    if length is not None and least > _WHOLE * observation.classes:
        best = math.copysign(length, best)
    return value / best * left


def _top_pair(
    gradient: Float[Tensor, "classes features"],
) -> tuple[Float[Tensor, " classes"], float, Float[Tensor, " features"]]:
    """Left vector, value and right vector of the largest singular value.

    By subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    matrix = gradient if gradient.numel() > SMALL_HEAD else gradient.double()
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    generator = torch.Generator().manual_seed(0)
    columns = min(8, *matrix.shape)
    probes = torch.randn(matrix.shape[1], columns, generator=generator, dtype=torch.float64)
    probes = probes.to(matrix)
    still = _STILL * torch.finfo(matrix.dtype).eps
    last = torch.zeros_like(probes[:, 0])
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(matrix @ probes)
        # In this order the product of a tall matrix is many times faster.
        probes = (basis.T @ matrix).T
        left, values, right = torch.linalg.svd(probes.T, full_matrices=False)
        moved = torch.minimum((right[0] - last).norm(), (right[0] + last).norm())
        if float(moved) < still:
            break
        last = right[0]
    return basis @ left[:, 0], float(values[0]), right[0]
