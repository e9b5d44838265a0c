"""From real-valued counts to shares and to whole counts of the right sum."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# More values are sieved before they are sorted, so many times at most.
_FEW, _SIEVINGS = 1 << 14, 4
# Values so much below the shift, relative to the total, are zero after it whatever the rounding.
_SLACK = 1e-6


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
    ordered = _most_of_support(values, total).sort(descending=True).values
    ranks = torch.arange(1, ordered.numel() + 1, device=values.device, dtype=torch.float64)
    shifts = (ordered.cumsum(0) - total) / ranks
    # The largest support on which every entry stays positive (Held, Wolfe and Crowder 1974).
    support = int((ordered > shifts).sum())
    return (values - shifts[support - 1]).clamp_min(0.0)


def _most_of_support(
    values: Float[Tensor, " classes"], total: float
) -> Float[Tensor, " remaining"]:
    """The values without many of those that the projection makes zero, to sort fewer of them.

    The shift that makes the sum right is at least that of any set of values taken together
    (Michelot 1986). Those just below it stay, since rounding must not decide.
    """
    for _ in range(_SIEVINGS):
        if len(values) <= _FEW:
            break
        shift = float(values.mean()) - total / len(values)
        values = values[values > shift - _SLACK * total]
    return values


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


def project_to_counts(
    values: Float[Tensor, " classes"], total: int, real: Float[Tensor, " classes"] | None = None
) -> Int[Tensor, " classes"]:
    """The non-negative integer vector with the given sum that is nearest in the Euclidean sense.

    The cost is separable and convex, so the best integers take the `total` cheapest unit
    increments. Those are found from the real-valued projection: its floor holds all increments
    that are cheap enough for certain, and the largest remainders are the cheapest of the others.

    Args:
        values: Any finite real numbers, shape (classes,).
        total: The sum to reach, a non-negative integer below 2**53.
        real: Their `project_to_simplex`, where it is at hand.

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
    real = project_to_simplex(values, total) if real is None else real
    floor = real.floor()
    counts = floor.long()
    missing = total - int(counts.sum())
    if missing:
        remainder = real - floor
        if missing > 0:
            counts[_least(-remainder, missing)] += 1
        else:
            # Rounding may lift an entry over an integer: take back the most expensive unit.
            held = torch.where(counts > 0, remainder, torch.inf)
            counts[_least(held, -missing)] -= 1
    return counts


def _least(values: Float[Tensor, " classes"], number: int) -> Int[Tensor, " number"]:
    """Where the least values are; of equal ones, the first."""
    if len(values) <= _FEW:
        return values.sort(stable=True).indices[:number]
    last = values.kthvalue(number).values
    below = (values < last).nonzero()[:, 0]
    equal = (values == last).nonzero()[:, 0]
    return torch.cat([below, equal[: number - len(below)]])
