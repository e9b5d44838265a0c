"""The restoration that an audit record holds, to be combined with others."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.errors import UnreadableFile
from labelleak.restoration import NORMAL_QUANTILE, Flag, Restoration

# A larger count would not be exact in double precision.
_MOST = 2**53
_FLAGS = {flag.name.lower(): flag for flag in Flag}


def recorded_restoration(record: Mapping[str, Any]) -> Restoration | None:
    """The counts, errors and flags that an audit record holds.

    Args:
        record: Schema ``labelleak/audit/1``, of one label for each sample.

    Returns:
        The restoration; None where it cannot be combined with others, as it has no counts, or
        neither intervals nor a certificate.

    Raises:
        UnreadableFile: A value is none that an audit writes down.

    Examples:
        >>> import torch, labelleak
        >>> from labelleak.audit import audit_observation
        >>> _ = torch.manual_seed(0)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> seen = labelleak.capture(torch.nn.Linear(20, 5), inputs, labels)
        >>> recorded_restoration(audit_observation(seen, "pooled").as_dict()).counts.tolist()
        [3, 2, 0, 2, 1]
    """
    counts, intervals = record.get("counts"), record.get("intervals")
    certified, flags = record.get("certified"), record.get("flags")
    if type(certified) is not bool or not isinstance(flags, list):
        raise UnreadableFile(
            "an audit record says neither yes nor no to a certificate, or no flags"
        )
    if counts is None or (intervals is None and not certified):
        return None
    told = recorded_counts(counts, record.get("classes"))
    raw, errors = _estimate(intervals, len(told))
    if errors is None and not certified:
        return None
    if sum(counts) != record.get("samples"):
        raise UnreadableFile("an audit record's counts do not add up to its samples")
    names = {flag.get("name") if isinstance(flag, dict) else None for flag in flags}
    if not names <= {*_FLAGS}:
        raise UnreadableFile("an audit record has a flag that does not exist")
    return Restoration(
        told > 0,
        told,
        raw=raw,
        standard_errors=errors,
        certified=certified,
        flags=tuple(flag for name, flag in _FLAGS.items() if name in names),
        attack=str(record.get("attack")),
    )


def recorded_counts(counts: Any, classes: Any) -> Tensor:
    """Counts of a record, int64, shape (classes,).

    Raises:
        UnreadableFile: They are none.
    """
    fits = isinstance(counts, list) and type(classes) is int and len(counts) == classes
    if not fits or classes < 2 or not all(type(one) is int and 0 <= one < _MOST for one in counts):
        raise UnreadableFile("an audit record's counts are no whole numbers, one for each class")
    return torch.tensor(counts)


def _estimate(
    intervals: Any, classes: int
) -> tuple[Float[Tensor, " classes"] | None, Float[Tensor, " classes"] | None]:
    """The middle of each interval, and the standard error that its width stands for."""
    if intervals is None:
        return None, None
    pairs = isinstance(intervals, list) and len(intervals) == classes
    if not pairs or not all(isinstance(one, list) and len(one) == 2 for one in intervals):
        raise UnreadableFile("an audit record has no pair of numbers for each class's interval")
    ends = [end for one in intervals for end in one]
    # What was infinite is null in a record: nothing is known of that count.
    if None in ends:
        return None, None
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise UnreadableFile("an end of an audit record's interval is no finite number")
    low, high = torch.tensor(intervals, dtype=torch.float64).unbind(dim=1)
    if bool((low > high).any()):
        raise UnreadableFile("an audit record's interval ends before it begins")
    return (low + high) / 2, (high - low) / (2 * NORMAL_QUANTILE)
