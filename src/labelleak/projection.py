"""From real-valued counts to shares and to whole counts of the right sum."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def project_to_simplex(
    values: Float[Tensor, " classes"], total: float
) -> Float[Tensor, " classes"]:
    """The non-negative vector with the given sum that is nearest in the Euclidean sense.

    Args:
        values: Any finite real numbers, shape (classes,).
        total: The sum to reach, positive.

    Returns:
        Shape (classes,), float64: ``max(values - t, 0)`` with the shift t that makes the sum right.

    Examples:
        >>> import torch
        >>> project_to_simplex(torch.tensor([0.75, 0.5, -0.25]), 1.0).tolist()
        [0.625, 0.375, 0.0]
    """
    # Entries that lie `total` or more below the largest one end at zero. Clamp them first, so that
    # sums stay exact for values of any size.
    values = (values.double() - values.max()).clamp_min(-total)
    ordered = values.sort(descending=True).values
    ranks = torch.arange(1, values.numel() + 1, device=values.device, dtype=torch.float64)
    shifts = (ordered.cumsum(0) - total) / ranks
    # The largest support on which every entry stays positive (Held, Wolfe and Crowder 1974).
    support = int((ordered > shifts).sum())
    return (values - shifts[support - 1]).clamp_min(0.0)


def project_to_box(values: Float[Tensor, " labels"], total: int) -> Int[Tensor, " labels"]:
    """The integers from 0 to the total that are nearest, each by itself.

    Args:
        values: Any finite real numbers, shape (labels,).
        total: The most that each may be, a non-negative integer below 2**53.

    Returns:
        int64, shape (labels,).

    Raises:
        ValueError: `total` is negative or an entry of `values` is not finite.

    Examples:
        >>> import torch
        >>> project_to_box(torch.tensor([2.4, -0.3, 9.7]), 8).tolist()
        [2, 0, 8]
    """
    if total < 0:
        raise ValueError(f"counts cannot be at most {total}")
    if not torch.isfinite(values).all():
        raise ValueError("counts cannot be made of NaN or infinite values")
    return values.double().round().clamp(0, total).long()


def project_to_counts(values: Float[Tensor, " classes"], total: int) -> Int[Tensor, " classes"]:
    """The non-negative integer vector with the given sum that is nearest in the Euclidean sense.

    The cost is separable and convex, so the best integers take the `total` cheapest unit
    increments. Those are found from the real-valued projection: its floor holds all increments
    that are cheap enough for certain, and the largest remainders are the cheapest of the others.

    Args:
        values: Any finite real numbers, shape (classes,).
        total: The sum to reach, a non-negative integer below 2**53.

    Returns:
        int64, shape (classes,). Ties go to the lowest class.

    Raises:
        ValueError: `total` is negative or an entry of `values` is not finite.

    Examples:
        >>> import torch
        >>> project_to_counts(torch.tensor([2.4, -0.3, 1.7]), 4).tolist()
        [2, 0, 2]
    """
    if total < 0:
        raise ValueError(f"counts cannot sum to {total}")
    if not torch.isfinite(values).all():
        raise ValueError("counts cannot be made of NaN or infinite values")
    if total == 0:
        return torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    real = project_to_simplex(values, total)
    floor = real.floor()
    counts = floor.long()
    missing = total - int(counts.sum())
    if missing:
        remainder = real - floor
        if missing > 0:
            ranked = remainder.sort(descending=True, stable=True).indices
            counts[ranked[:missing]] += 1
        else:
            # Rounding may lift an entry over an integer: take back the most expensive unit.
            held = torch.where(counts > 0, remainder, torch.inf)
            ranked = held.sort(stable=True).indices
            counts[ranked[:-missing]] -= 1
    return counts
