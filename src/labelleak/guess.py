"""The best guess at a batch's counts without its update, and what an attack gains over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

# Marginal gains this close, relative to the larger, are equal: only rounding tells them apart.
_SAME = 1e-9
# Halvings of a probability until the doubles next to each other are reached.
_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Guess:
    """Counts that somebody would guess who has not seen the update; ties are drawn evenly.

    Attributes:
        counts: Number of samples guessed of each class for sure, int64, shape (classes,).
        extra: Probability of one sample more of each class, float64, shape (classes,). What is left
            of the batch is dealt out at random among classes that deserve it equally.

    Examples:
        >>> import torch
        >>> guess = best_guess(8, 3)
        >>> guess.counts.tolist(), [round(share, 3) for share in guess.extra.tolist()]
        ([2, 2, 2], [0.667, 0.667, 0.667])
        >>> round(guess.accuracy(torch.tensor([8, 0, 0])), 3)
        0.333
    """

    counts: Int[Tensor, " classes"]
    extra: Float[Tensor, " classes"]

    @property
    def total(self) -> int:
        """Number of samples that the guess adds up to."""
        return int(self.counts.sum()) + round(float(self.extra.sum()))

    def accuracy(self, true: Integer[Tensor, " classes"]) -> float:
        """Share of the labels that the guess gets right, on average over its ties.

        Args:
            true: True counts, integers that sum to the same total, shape (classes,).

        Returns:
            ``sum_c min(guess_c, n_c) / K``, between 0 and 1.
        """
        true = true.long().to(self.counts.device)
        lower = torch.minimum(self.counts, true).double()
        upper = torch.minimum(self.counts + 1, true).double()
        return float((lower + self.extra * (upper - lower)).sum()) / max(int(true.sum()), 1)


class Advantage(NamedTuple):
    """What an attack gains over the best guess.

    Attributes:
        additive: Its accuracy less that of the guess, between -1 and 1.
        relative: The same as a share of what the guess leaves open, at most 1; 0 where the guess
            leaves nothing open.
    """

    additive: float
    relative: float


def advantage_over(guessed: float, accuracy: float) -> Advantage:
    """What an accuracy gains over that of the best guess.

    Args:
        guessed: Accuracy of the guess, between 0 and 1.
        accuracy: Accuracy of the attack, between 0 and 1.

    Returns:
        The additive advantage (Busa-Fekete et al., NeurIPS 2024, arXiv:2406.02797) and the relative
        one, ``(accuracy - guessed) / (1 - guessed)``.

    Examples:
        >>> gained = advantage_over(0.6, 0.9)
        >>> round(gained.additive, 3), round(gained.relative, 3)
        (0.3, 0.75)
    """
    open_share = 1.0 - guessed
    gained = accuracy - guessed
    return Advantage(gained, gained / open_share if open_share > _SAME else 0.0)


def best_guess(total: int, classes: int, prior: Sequence[float] | None = None) -> Guess:
    """The counts with the largest expected accuracy for somebody who has not seen the update.

    Labels are taken to be drawn from the prior, independently. A further sample of class c is right
    with probability ``P(n_c >= g_c + 1)``, which falls as g_c grows, so that dealing samples out
    one by one to the most probable class is optimal. Without a prior all classes are alike, and
    the guess is as many of each.

    Args:
        total: Number of samples K, at least 1.
        classes: Number of classes C.
        prior: Share of each class as the public knows it, non-negative numbers of any sum; None for
            the same share of each.

    Returns:
        The guess.

    Raises:
        ValueError: The prior has not one share for each class, or they are no shares.

    Examples:
        >>> best_guess(10, 2, prior=[9, 1]).counts.tolist()
        [9, 1]
    """
    if prior is None:
        counts = torch.full((classes,), total // classes)
        extra = torch.full((classes,), (total % classes) / classes, dtype=torch.float64)
        return Guess(counts, extra)
    shares = checked_prior(prior, classes)
    counts = _most_below(total, shares)
    extra = torch.zeros(classes, dtype=torch.float64)
    left = total - int(counts.sum())
    while left > 0:
        gains = _tail(total, shares, counts)
        tied = gains >= (1.0 - _SAME) * float(gains.max())
        if int(tied.sum()) > left:
            extra[tied] = left / int(tied.sum())
            break
        counts += tied
        left -= int(tied.sum())
    return Guess(counts, extra)


def checked_prior(prior: Sequence[float], classes: int) -> Float[Tensor, " classes"]:
    """The shares of a prior, so that they sum to one.

    Raises:
        ValueError: They are not one non-negative, finite number for each class, or all are zero.
    """
    shares = torch.tensor([float(share) for share in prior], dtype=torch.float64)
    if shares.numel() != classes:
        raise ValueError(
            f"prior: {shares.numel()} shares for {classes} classes, and one for each is needed"
        )
    if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()) or not bool(shares.any()):
        raise ValueError("prior: shares must be finite, at least 0, and not all 0")
    return shares / shares.sum()


def _most_below(total: int, shares: Tensor) -> Int[Tensor, " classes"]:
    """The samples whose probability is above a level that at most `total` of them exceed."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(_quantiles(total, shares, middle).sum()) <= total:
            high = middle
        else:
            low = middle
    return _quantiles(total, shares, high)


def _quantiles(total: int, shares: Tensor, level: float) -> Int[Tensor, " classes"]:
    """For each class the number of j with ``P(n_c >= j) > level``."""
    from scipy.stats import binom

    found = torch.as_tensor(binom.ppf(1.0 - level, total, shares.numpy()), dtype=torch.float64)
    return found.nan_to_num(0.0).clamp(0, total).where(shares > 0, 0.0).long()


def _tail(total: int, shares: Tensor, counts: Tensor) -> Float[Tensor, " classes"]:
    """``P(n_c > counts_c)`` of each class."""
    from scipy.stats import binom

    return torch.as_tensor(binom.sf(counts.numpy(), total, shares.numpy()), dtype=torch.float64)
