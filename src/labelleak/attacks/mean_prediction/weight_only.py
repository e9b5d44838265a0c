"""The bias gradient of a head that has none, from the weight's gradient and the softmax."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.mean_prediction.raw_counts import raw_counts
from labelleak.attacks.mean_prediction.regression import SMALL_HEAD
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.projection import project_to_counts

# Lengths of the mean embedding that are tried for each sign, evenly spaced in their logarithm.
_LENGTHS = 400
# Standard deviation of the logits at the longest one: above, a softmax favors a single class.
_LOGITS = 2.0
# Mean over mean magnitude of the embedding's entries from which on they tell its sign.
_ONE_SIGN = 0.3
# Search lengths within this factor of the estimate.
_NEAR = 1.25
# Mean squared distance from whole numbers at which those are no evidence: at random it is 1/12.
_WHOLE = 0.06
# Squared distances that differ by less are the same: a thousandth of a sample, far above rounding.
_SAME = 1e-6


def restored_bias_gradient(
    observation: Observation, length: float | None = None
) -> Float[Tensor, " classes"]:
    """What the gradient of a bias would be.

    The weight gradient's top singular pair is ``s u v^T``, with u along the bias gradient and v
    along the mean embedding e. Its length is left: ``db = s u / |e|``. Too short an e makes counts
    negative, a wrong one leaves them no whole numbers: every length is rated by how far its counts
    are from the nearest non-negative whole ones of the right sum.

    Args:
        observation: With a batch size.
        length: Estimated length of e, where there is an estimate: only lengths near it are rated,
            and it stands itself where none of them makes counts whole.

    Returns:
        The bias gradient of the best length, float64, shape (classes,), in the gradient's unit.

    Raises:
        MissingKnowledge: No batch size: there is nothing to rate a length by.
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
    # No entry of the bias gradient of a mean loss exceeds one. At the other end the prediction goes
    # to a single class, whose counts are whole and wrong: logits shall not differ so much.
    shortest = value * float(left.abs().max()) / observation.scale
    longest = max(_LOGITS / max(float(direction.std()), 1e-12), 4.0 * shortest)
    if length is not None:
        shortest, longest = length / _NEAR, length * _NEAR
    lengths = torch.logspace(0, 1, _LENGTHS, base=longest / shortest, dtype=torch.float64)
    lengths = shortest * lengths.to(left.device)
    # Embeddings after a ReLU are not negative, which tells the sign; others leave it open. The
    # decomposition's own sign is arbitrary, so both are tried from the same end.
    lean = float(right.sum() / right.abs().sum())
    sign = math.copysign(1.0, lean)
    signs = (sign, -sign) if abs(lean) < _ONE_SIGN else (sign,)
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
    """The largest singular value, and its vectors about it.

    By subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    matrix = gradient if gradient.numel() > SMALL_HEAD else gradient.double()
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    generator = torch.Generator().manual_seed(0)
    columns = min(8, *matrix.shape)
    probes = torch.randn(matrix.shape[1], columns, generator=generator, dtype=torch.float64)
    probes = probes.to(matrix)
    for _ in range(6):
        basis, _ = torch.linalg.qr(matrix @ probes)
        probes = matrix.T @ basis
    left, values, right = torch.linalg.svd(probes.T, full_matrices=False)
    return basis @ left[:, 0], float(values[0]), right[0]
