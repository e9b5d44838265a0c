"""From real-valued counts to a restoration: set, counts, shares, and the flags that these raise."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.presence import told_apart
from labelleak.observation import Observation
from labelleak.projection import project_to_counts, project_to_simplex
from labelleak.restoration import Flag, Restoration

_TOTAL_TOLERANCE = 0.05
# Fractions that mean nothing are uniform, and on average 0.25 from an integer. At this bound most
# wrong counts are caught and most right ones let pass (docs/concepts.md has the two rates).
_NOT_INTEGRAL = 0.15


def conclude(
    observation: Observation,
    raw: Float[Tensor, " classes"],
    total: int | None,
    *,
    among: Int[Tensor, " possible"] | None = None,
    standard_errors: Float[Tensor, " classes"] | None = None,
    errors: Float[Tensor, " classes"] | None = None,
    flags: tuple[Flag, ...] = (),
) -> Restoration:
    """Counts, set and shares that real-valued counts stand for.

    Args:
        observation: What the server sees.
        raw: Real-valued counts, or shares where the total is not known, shape (classes,).
        total: Number of instances, or None. Where nobody told it, it may be a guess of the attack.
        among: Classes that are known to be there, int64, shape (possible,); None where they are not
            known. No other class fills a gap.
        standard_errors: Of `raw`, shape (classes,), for the reader, where they are known.
        errors: How far `raw` may be off, shape (classes,), where that is known: tells the classes
            that are there where nobody told the total, and is not needed otherwise.
        flags: What the attack has to say.

    Returns:
        The restoration; flagged `TOTAL_DOES_NOT_FIT` where the clipped counts miss the total by
        more than 5 % and more than one, and `SET_NOT_SURE` where nobody told the total and
        `told_apart` is not sure of the set.
    """
    solved = slice(None) if among is None else among
    proportions = torch.zeros_like(raw)
    nearest = project_to_simplex(raw[solved], total or 1)
    proportions[solved] = nearest / (total or 1)
    if observation.num_instances is None:
        present, sure = _set_without_size(observation, raw, total, among, errors)
        flags = flags if sure else (*flags, Flag.SET_NOT_SURE)
        if total is None:
            return Restoration(
                present=present,
                raw=raw,
                standard_errors=standard_errors,
                proportions=proportions,
                flags=flags,
            )
    assert total is not None, "it was told, or the attack guesses it"
    counts = torch.zeros_like(raw, dtype=torch.int64)
    counts[solved] = project_to_counts(raw[solved], total, nearest)
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


def _set_without_size(
    observation: Observation,
    raw: Float[Tensor, " classes"],
    total: int | None,
    among: Int[Tensor, " possible"] | None,
    errors: Float[Tensor, " classes"] | None,
) -> tuple[Bool[Tensor, " classes"], bool]:
    """The classes that are there, and whether that is sure; arguments as of `conclude`."""
    if among is not None:
        return torch.zeros_like(raw, dtype=torch.bool).index_fill(0, among, True), True
    unit, size = 1.0, None
    if total is not None:
        unit, size = float(total), total * observation.training.epochs / observation.local_steps
    shares, share_errors = raw / unit, None if errors is None else errors / unit
    return told_apart(observation, shares, share_errors, observation.loss.scale(size))


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
