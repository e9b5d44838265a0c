"""From real-valued counts to a restoration: set, counts, shares, and the flags that these raise."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.projection import project_to_counts, project_to_simplex
from labelleak.restoration import Flag, Restoration

_TOTAL_TOLERANCE = 0.05
# Fractions that mean nothing are uniform, and on average 0.25 from an integer. At this bound most
# wrong counts are caught and most right ones let pass (docs/concepts.md has the two rates).
_NOT_INTEGRAL = 0.15


def conclude(
    raw: Float[Tensor, " classes"],
    total: int | None,
    *,
    among: Int[Tensor, " possible"] | None = None,
    standard_errors: Float[Tensor, " classes"] | None = None,
    flags: tuple[Flag, ...] = (),
) -> Restoration:
    """Counts, set and shares that real-valued counts stand for.

    Args:
        raw: Real-valued counts, or shares where the total is not known, shape (classes,).
        total: Number of instances, or None.
        among: Classes that may be there, int64, shape (possible,); None for all of them. No other
            class fills a gap.
        standard_errors: Of `raw`, shape (classes,), where they are known.
        flags: What the attack has to say.

    Returns:
        The restoration; flagged `TOTAL_DOES_NOT_FIT` where the clipped counts miss the total by
        more than 5 % and more than one.
    """
    solved = slice(None) if among is None else among
    proportions = torch.zeros_like(raw)
    proportions[solved] = project_to_simplex(raw[solved], total or 1) / (total or 1)
    if total is None:
        clear = (
            clear_shares(raw) if standard_errors is None else proportions > 2.0 * standard_errors
        )
        return Restoration(
            present=clear,
            raw=raw,
            standard_errors=standard_errors,
            proportions=proportions,
            flags=flags,
        )
    counts = torch.zeros_like(raw, dtype=torch.int64)
    counts[solved] = project_to_counts(raw[solved], total)
    if not total_fits(raw, total):
        flags = (*flags, Flag.TOTAL_DOES_NOT_FIT)
    return Restoration(
        present=counts > 0,
        counts=counts,
        rounded=raw.clamp(0.0, total).round().long(),
        raw=raw,
        standard_errors=standard_errors,
        proportions=proportions,
        flags=flags,
    )


def clear_shares(shares: Float[Tensor, " classes"]) -> Bool[Tensor, " classes"]:
    """Classes whose shares are clear: above half of that of a median class with any.

    Without the number of instances the smallest share that can be told from an error is not known.
    """
    clipped = shares.clamp(0.0, 1.0)
    return clipped > 0.5 * clipped[clipped > 0].median()


def total_fits(raw: Float[Tensor, " classes"], total: int) -> bool:
    """Whether real-valued counts, clipped at zero and K, miss K by at most 5 % or one."""
    missed = abs(float(raw.clamp(0.0, total).sum()) - total)
    return missed <= max(1.0, _TOTAL_TOLERANCE * total)


def are_integral(raw: Float[Tensor, " unknowns"]) -> bool:
    """Whether real-valued counts are at most 0.15 from the nearest integers on average.

    Over all classes that were solved for, and over those with a count: many absent classes, rightly
    near zero, would hide what is wrong with the others.
    """
    distances = (raw - raw.round()).abs()
    counted = distances[raw > 0.5]
    farthest = max(float(distances.mean()), float(counted.mean()) if counted.numel() else 0.0)
    return farthest <= _NOT_INTEGRAL
