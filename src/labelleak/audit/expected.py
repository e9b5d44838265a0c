"""What an attack tells by its own account, where no true labels say how much of it is right."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from labelleak.cells import count_bounds, small_cells
from labelleak.guess import Guess, advantage_over, best_guess
from labelleak.restoration import Restoration


def expected_score(
    found: Restoration, *, prior: Sequence[float] | None = None, floor: int = 10
) -> dict[str, Any] | None:
    """Expected figures of a restoration by its certificate or its standard errors.

    The true counts are taken to be normal about the attack's real-valued ones. A label is wrong for
    every two counts that are off by one, so that the expected accuracy is
    ``1 - sum_c E|n_c - counts_c| / (2 K)``; that of the best guess follows in the same way.

    Args:
        found: The restoration.
        prior: Of the best guess, see `labelleak.guess.best_guess`.
        floor: The smallest count that may be told.

    Returns:
        ``by`` (``"certificate"`` or ``"intervals"``), ``accuracy``, ``guess``, ``above_guess``,
        ``relative_advantage``, and ``small_cells_told``, the number of classes that it says are
        small or absent. None where it has neither, or no counts, and of label sets.

    Examples:
        >>> found = Restoration(torch.tensor([True, False]), torch.tensor([4, 0]), certified=True)
        >>> expected = expected_score(found)
        >>> expected["accuracy"], expected["guess"], expected["small_cells_told"]
        (1.0, 0.5, 2)
    """
    bounds, counts = count_bounds(found), found.counts
    if bounds is None or counts is None or found.multi_label:
        return None
    errors = torch.zeros_like(counts, dtype=torch.float64)
    raw = counts.double()
    if not found.certified:
        if found.raw is None or found.standard_errors is None:
            return None
        raw, errors = found.raw.double(), found.standard_errors.double()
    total = int(counts.sum())
    guess = best_guess(total, counts.numel(), prior)
    accuracy = _share_right(raw, errors, counts, total)
    guessed = _guessed(guess, raw, errors, total)
    gained = advantage_over(guessed, accuracy)
    few, none = small_cells(bounds, floor)
    return {
        "by": "certificate" if found.certified else "intervals",
        "accuracy": accuracy,
        "guess": guessed,
        "above_guess": gained.additive,
        "relative_advantage": gained.relative,
        "small_cells_told": int((few | none).sum()),
    }


def _share_right(raw: Tensor, errors: Tensor, counts: Tensor, total: int) -> float:
    off = _mean_distance(raw - counts, errors).sum()
    return max(0.0, 1.0 - float(off) / (2 * total))


def _guessed(guess: Guess, raw: Tensor, errors: Tensor, total: int) -> float:
    """The expected accuracy of the guess, on average over its ties."""
    lower = _mean_distance(raw - guess.counts.to(raw), errors)
    upper = _mean_distance(raw - guess.counts.to(raw) - 1, errors)
    extra = guess.extra.to(raw)
    return max(0.0, 1.0 - float(((1 - extra) * lower + extra * upper).sum()) / (2 * total))


def _mean_distance(middle: Tensor, errors: Tensor) -> Tensor:
    """``E|x|`` of a normal variable: the mean of the folded normal distribution."""
    spread = errors.clamp_min(1e-300)
    folded = (middle / spread).square().clamp_max(1e4) / 2
    return errors * math.sqrt(2 / math.pi) * torch.exp(-folded) + middle * torch.erf(
        middle / (spread * math.sqrt(2))
    )
