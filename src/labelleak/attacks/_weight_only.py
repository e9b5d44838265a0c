"""The bias gradient of a head that has none, from the weight's gradient and the softmax."""

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks._counts import raw_counts
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import project_to_counts

_LENGTHS = 400
_LOGITS = 2.0
_ONE_SIGN = 0.3
_SMALL_HEAD = 1 << 22


def restored_bias_gradient(
    observation: Observation, replicates: int
) -> tuple[Float[Tensor, " classes"], Float[Tensor, "classes replicates"]]:
    """What the gradient of a bias would be.

    The weight gradient's top singular pair is ``s u v^T``, with u along the bias gradient and v
    along the mean embedding e. Its length is left: ``db = s u / |e|``. Too short an e makes counts
    negative, a wrong one leaves them no whole numbers: every length is rated by how far its counts
    are from the nearest non-negative whole ones of the right sum.

    Args:
        observation: With a batch size.
        replicates: Number of draws from the lengths that are as likely as their distances say.

    Returns:
        The bias gradient of the best length, float64, shape (classes,), in the gradient's unit; and
        that of every draw, float64, shape (classes, replicates).

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
    left, value, second, right = _top_pair(gradient)
    direction = (head.weight.to(right.dtype) @ right).double()
    left, right = left.double(), right.double()
    bias = torch.zeros_like(direction) if head.bias is None else head.bias.double()
    # No entry of the bias gradient of a mean loss exceeds one. At the other end the prediction goes
    # to a single class, whose counts are whole and wrong: logits shall not differ so much.
    scale = size if observation.reduction == "sum" else 1
    shortest = value * float(left.abs().max()) / scale
    longest = max(_LOGITS / max(float(direction.std()), 1e-12), 4.0 * shortest)
    lengths = torch.logspace(0, 1, _LENGTHS, base=longest / shortest, dtype=torch.float64)
    lengths = shortest * lengths.to(left.device)
    # Embeddings after a ReLU are not negative, which tells the sign; others leave it open.
    lean = float(right.sum() / right.abs().sum())
    signs = (1.0, -1.0) if abs(lean) < _ONE_SIGN else (1.0 if lean > 0 else -1.0,)
    costs, candidates = [], []
    for sign in signs:
        for length in lengths.tolist():
            prediction = torch.softmax(sign * length * direction + bias, dim=0)[:, None]
            gradient_of_bias = (sign * value / length * left)[:, None]
            raw = raw_counts(observation, prediction, gradient_of_bias, total, size)[:, 0]
            costs.append(float((raw - project_to_counts(raw, total)).square().sum()))
            candidates.append(sign * length)
    cost = torch.tensor(costs, dtype=torch.float64)
    signed = torch.tensor(candidates, dtype=torch.float64, device=left.device)
    # Distances per class of the best length stand for the errors of counts, at least a little.
    variance = max(float(cost.min()) / observation.classes, 1e-4)
    likely = torch.softmax(-(cost - cost.min()) / (2.0 * variance), dim=0)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(likely, replicates, replacement=True, generator=generator)
    best = signed[int(cost.argmin())]
    found, varied = value / best * left, value / signed[drawn] * left[:, None]
    # What a row holds besides the pair may lie along e as well: rows of classes with many instances
    # hold most, and no direction holds more than the second singular value.
    share = (scale / observation.classes - found).clamp_min(0.0)
    error = second / best.abs() * (share / share.sum().clamp_min(1e-300)).sqrt()
    noise = torch.randn(varied.shape, generator=generator, dtype=torch.float64).to(varied)
    return found, varied + error[:, None] * noise


def _top_pair(
    gradient: Float[Tensor, "classes features"],
) -> tuple[Float[Tensor, " classes"], float, float, Float[Tensor, " features"]]:
    """The largest singular value, its vectors about it, and the second largest value.

    By subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    matrix = gradient if gradient.numel() > _SMALL_HEAD else gradient.double()
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
    second = float(values[1]) if columns > 1 else 0.0
    return basis @ left[:, 0], float(values[0]), second, right[0]
