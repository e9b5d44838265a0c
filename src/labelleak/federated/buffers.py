"""Tensors of an update that no training computes: BatchNorm's counters, and other integers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelleak.federated.contents import Leak, shown
from labelleak.training import MOST_STEPS

_COUNTER = "num_batches_tracked"


class Buffers(NamedTuple):
    """What the buffers of an update say.

    Attributes:
        steps: Number of local steps that all BatchNorm layers counted; None where they counted
            none, or not the same.
        notes: What is odd about their counters, in words.
        problem: What is wrong with the buffers, in one clause, or None.
        leaks: What they tell of the labels by themselves.
    """

    steps: int | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None
    leaks: tuple[Leak, ...] = ()


def integers_in(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the integer tensors and counters of a model, on the CPU.

    Args:
        state: State dict, by bare names.
    """
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in state.items()
        if isinstance(value, Tensor) and (is_counter(name) or not _has_fractions(value))
    }


def read_buffers(start: Mapping[str, Tensor], sent: Mapping[str, Any]) -> Buffers:
    """Compare the buffers of an update with those that the server handed out.

    A counter may grow by a number of steps. Any other integer tensor must stay as it is: what an
    app puts there, nobody audits.

    Args:
        start: See `integers_in`.
        sent: State dict that is sent back, by bare names.

    Returns:
        What they say.
    """
    moves: dict[str, int] = {}
    odd, changed = [], []
    for name, before in start.items():
        after = sent.get(name)
        if not isinstance(after, Tensor) or after.shape != before.shape:
            continue  # told as such elsewhere
        if not is_counter(name):
            if not _is_same(before, after):
                changed.append(name)
        elif (move := _move(before, after)) is None:
            odd.append(name)
        else:
            moves[name] = move
    problems = [
        f"{what}: {', '.join(shown([name]) for name in names[:3])}"
        for what, names in (
            ("no count of local steps", odd),
            ("integers that are not those received", changed),
        )
        if names
    ]
    counted = {move for move in moves.values() if move > 0}
    notes, leaks = [], []
    if counted:
        where = next(name for name, move in moves.items() if move > 0)
        why = "BatchNorm counts the local steps"
        leaks.append(Leak("number of local steps", shown([where]), why))
    if len(counted) > 1:
        notes.append(
            f"BatchNorm layers counted {min(counted)} to {max(counted)} local steps: none is used"
        )
    steps = counted.pop() if len(counted) == 1 else None
    return Buffers(steps, tuple(notes), "; ".join(problems) or None, tuple(leaks))


def is_counter(name: str) -> bool:
    """Whether a tensor of that name is BatchNorm's number of batches."""
    return name.rpartition(".")[2] == _COUNTER


def _has_fractions(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _is_same(before: Tensor, after: Tensor) -> bool:
    try:
        here = after.detach().cpu()
        return torch.equal(here if here.dtype == before.dtype else here.to(before.dtype), before)
    except (RuntimeError, TypeError, ValueError):
        return False


def _move(before: Tensor, after: Tensor) -> int | None:
    """By how much a counter grew; None where it is no count of steps."""
    try:
        start, end = float(before), float(after)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not math.isfinite(start) or not math.isfinite(end) or end < 0:
        return None
    # An average of clients has a fraction, which an app keeps or cuts off.
    if end % 1.0 and abs(end % 1.0 - start % 1.0) > 1e-3:
        return None
    move = math.floor(end) - math.floor(start)
    return move if move <= MOST_STEPS else None
