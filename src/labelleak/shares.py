"""How far restored shares of the classes are from the true ones."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from scipy.special import rel_entr
from torch import Tensor

from labelleak.restoration import Restoration


@dataclass(frozen=True)
class ShareDistances:
    """Distances of two vectors of shares; all are 0 where the shares are equal, and at most 1.

    Attributes:
        linf: Largest difference of a share, ``max |p_i - q_i|``, as in Decaf (arXiv:2405.15316).
        cosine: ``1 - p . q / (|p| |q|)``.
        js: Jensen-Shannon distance: the root of the mean of ``KL(p, m)`` and ``KL(q, m)`` with
            ``m = (p + q) / 2``, logarithms to base 2 (Endres and Schindelin 2003).

    Examples:
        >>> import torch
        >>> share_distances(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])).linf
        0.5
    """

    linf: float
    cosine: float
    js: float


def share_distances(
    found: Float[Tensor, " classes"], true: Float[Tensor, " classes"]
) -> ShareDistances:
    """Distances between two vectors of shares.

    Args:
        found: Non-negative, summing to one, shape (classes,).
        true: Likewise.

    Examples:
        >>> import torch
        >>> share_distances(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        ShareDistances(linf=1.0, cosine=1.0, js=1.0)
    """
    p, q = found.double().cpu(), true.double().cpu()
    middle = (p + q) / 2
    entropies = [float(rel_entr(one.numpy(), middle.numpy()).sum()) for one in (p, q)]
    # Of shares that are all but equal, rounding may leave less than nothing.
    divergence = max(0.0, sum(entropies) / 2 / math.log(2))
    return ShareDistances(
        linf=float((p - q).abs().max()),
        cosine=max(0.0, 1.0 - float(torch.cosine_similarity(p, q, dim=0))),
        js=math.sqrt(divergence),
    )


def distances_of(
    found: Restoration,
    counts: Integer[Tensor, " classes"] | None,
    true_counts: Integer[Tensor, " classes"],
) -> ShareDistances | None:
    """Distances of the shares that an attack restored, before rounding where it has those.

    Args:
        found: The restoration.
        counts: Its counts that are scored, shape (classes,); None where it has none.
        true_counts: Number of instances of each class, not all zero, shape (classes,).

    Returns:
        The distances; None for a set, and for label sets, whose shares have no common sum.
    """
    shares = found.proportions
    if shares is None and counts is not None and bool(counts.any()):
        shares = counts.double() / counts.sum()
    if shares is None or found.multi_label:
        return None
    return share_distances(shares, true_counts.double() / true_counts.sum())


def macro_error(
    found: Integer[Tensor, " labels"], true: Integer[Tensor, " labels"], samples: int
) -> float:
    """Mean over the labels of ``|n_hat - n| / K``, for K samples: how far prevalences are off.

    Examples:
        >>> import torch
        >>> macro_error(torch.tensor([3, 1]), torch.tensor([2, 1]), samples=8)
        0.0625
    """
    return float((found - true.to(found.device)).abs().double().mean()) / samples
