"""How much of a batch's labels a restoration got right.

Notation: C classes, K instances, n the true number of instances of each class and n_hat the
restored one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from labelleak.cells import USUAL_FLOOR, told_cells
from labelleak.displays import facts_html
from labelleak.guess import advantage_over, best_guess
from labelleak.restoration import Restoration
from labelleak.shares import distances_of


@dataclass(frozen=True)
class Score:
    """What one restoration got right.

    Every figure is better the larger it is, but for the distances of shares, which are 0 at best.

    Attributes:
        leacc: Label existence accuracy, see `leacc`.
        lnacc: Label number accuracy, see `lnacc`; None where no counts were restored.
        recall: Share of the instances that were restored, see `recall`; None without counts.
        accuracy: The same with excess counted against it, see `accuracy`; None without counts.
        exact: Whether every count is right; None without counts.
        existence_precision: Share of the restored classes that are in the batch.
        existence_recall: Share of the batch's classes that were restored.
        guess: Accuracy of the best guess without the update; None without counts, and of label
            sets, whose sizes nobody can guess.
        above_guess: `accuracy` less `guess`; None without counts.
        relative_advantage: The same as a share of what the guess leaves open: *the* advantage.
        small_cells_told: Number of small or absent classes that are told with confidence, see
            `labelleak.cells`; None where the attack gives neither intervals nor a certificate.
        shares_linf: Largest error of a class's share; of label sets None, as the next two.
        shares_cosine: Cosine distance of the shares, see `labelleak.shares`; None for a set.
        shares_js: Jensen-Shannon distance of the shares, to base 2; None for a set.

    Examples:
        >>> import torch
        >>> from labelleak import Restoration
        >>> found = Restoration(present=torch.tensor([True, False]), counts=torch.tensor([2, 0]))
        >>> score(found, torch.tensor([2, 0])).exact
        True
    """

    leacc: float
    lnacc: float | None
    recall: float | None
    accuracy: float | None
    exact: bool | None
    existence_precision: float
    existence_recall: float
    guess: float | None = None
    above_guess: float | None = None
    relative_advantage: float | None = None
    small_cells_told: int | None = None
    shares_linf: float | None = None
    shares_cosine: float | None = None
    shares_js: float | None = None

    def as_dict(self) -> dict[str, float | bool | None]:
        """All figures by name, in the order of the attributes."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """A table for notebooks, with what it means first."""
        return facts_html("What was right", _in_words(self.as_dict()), _gained(self))


def _in_words(figures: dict[str, float | bool | None]) -> dict[str, str]:
    return {
        name: ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3g}"
        for name, value in figures.items()
        if value is not None
    }


def _gained(scored: Score) -> list[str]:
    """The advantage in words, where there are counts."""
    if scored.accuracy is None or scored.guess is None or scored.relative_advantage is None:
        return []
    return [
        f"{scored.accuracy:.1%} of the labels are right, where a guess without the update gets "
        f"{scored.guess:.1%}: {max(0.0, scored.relative_advantage):.1%} of what it leaves open"
    ]


def score(
    found: Restoration,
    true_counts: Integer[Tensor, " classes"],
    *,
    use: Literal["counts", "rounded"] = "counts",
    prior: Sequence[float] | None = None,
    floor: int = USUAL_FLOOR,
) -> Score:
    """Compare a restoration with the true labels of the batch.

    Args:
        found: The restoration. Without counts (a set, or proportions) the figures about counts are
            None, and those about existence are taken from ``found.present``.
        true_counts: Number of instances of each class, integers, shape (classes,), on any device.
        use: ``"counts"``: the restored counts, which sum to the number of instances. ``"rounded"``:
            the counts before their sum is repaired, and the set of classes where they are positive,
            as in the figures of Ma et al. (ICLR 2023); an attack that repairs nothing has no such
            counts, and its own are taken.
        prior: Share of each class as the public knows it, for the best guess; None for even ones.
        floor: The smallest count that may be told.

    Returns:
        The score.

    Raises:
        ValueError: `true_counts` are no counts of these classes, `use` is neither, or the prior has
            not one share for each class.

    Examples:
        >>> import torch
        >>> from labelleak import Restoration
        >>> counts = torch.tensor([3, 1, 0, 2])
        >>> found = Restoration(present=counts > 0, counts=counts)
        >>> result = score(found, torch.tensor([2, 1, 1, 2]))
        >>> round(result.accuracy, 3), result.lnacc, result.exact
        (0.833, 0.5, False)
    """
    if use not in ("counts", "rounded"):
        raise ValueError(f"use={use!r}: choose 'counts' or 'rounded'")
    counts = found.rounded if use == "rounded" and found.rounded is not None else found.counts
    present = found.present.long() if counts is None else counts
    _, true = _checked(present, true_counts)
    guess = gained = told = None
    apart = distances_of(found, counts, true)
    if counts is not None:
        told = told_cells(found, true, floor)
        if not found.multi_label:
            guess = best_guess(int(true.sum()), true.numel(), prior).accuracy(true)
            gained = advantage_over(guess, accuracy(counts, true))
    return Score(
        leacc=leacc(present, true_counts),
        lnacc=None if counts is None else lnacc(counts, true_counts),
        recall=None if counts is None else recall(counts, true_counts),
        accuracy=None if counts is None else accuracy(counts, true_counts),
        exact=None if counts is None else exact_match(counts, true_counts),
        existence_precision=existence_precision(present, true_counts),
        existence_recall=existence_recall(present, true_counts),
        guess=guess,
        above_guess=None if gained is None else gained.additive,
        relative_advantage=None if gained is None else gained.relative,
        small_cells_told=None if told is None else int(told.sum()),
        shares_linf=None if apart is None else apart.linf,
        shares_cosine=None if apart is None else apart.cosine,
        shares_js=None if apart is None else apart.js,
    )


def counts_of(
    labels: Integer[Tensor, "batch *labels"], classes: int
) -> Integer[Tensor, " classes"]:
    """Number of instances of each class, or of each label.

    Args:
        labels: Class indices, any integer dtype, shape (batch,); or zeros and ones for every label
            of every sample, shape (batch, labels), -1 where one is left out. One column is that of
            a single logit, whose two classes are 0 and 1.
        classes: Number of classes C, or of labels.

    Returns:
        int64, shape (classes,), on the device of `labels`.

    Raises:
        ValueError: `labels` are no integers, or one of them is not in 0..C-1.

    Examples:
        >>> import torch
        >>> counts_of(torch.tensor([0, 2, 2]), classes=4).tolist()
        [1, 0, 2, 0]
        >>> counts_of(torch.tensor([[0, 1, 1], [0, 0, 1]]), classes=3).tolist()
        [0, 1, 2]
    """
    if labels.ndim == 2 and labels.shape[1] == 1 and classes == 2:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] == classes and bool((labels.abs() <= 1).all()):
        return (labels == 1).sum(dim=0)
    if labels.ndim != 1 or not _is_integer(labels):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype}: a list of integers is "
            "needed"
        )
    labels = labels.long()
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.numel():
        raise ValueError(f"label {int(outside[0])}: the classes are 0..{classes - 1}")
    return torch.bincount(labels, minlength=classes)


def leacc(found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]) -> float:
    """Label existence accuracy: the mean over all C classes of ``[n_hat > 0] == [n > 0]``.

    Absent classes count as much as present ones, so with many classes and a small batch it is high
    for an empty set already. Ma et al., ICLR 2023, section 4.

    Args:
        found: Restored counts n_hat (or 1 for each restored class), int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> leacc(found, true)
        0.75
    """
    found, true = _checked(found, true)
    return int(((found > 0) == (true > 0)).sum()) / true.numel()


def lnacc(found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]) -> float:
    """Label number accuracy: the mean over all C classes of ``n_hat == n``.

    Ma et al., ICLR 2023, section 4. Never above `leacc`.

    Args:
        found: Restored counts n_hat, int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> lnacc(found, true)
        0.5
    """
    found, true = _checked(found, true)
    return int((found == true).sum()) / true.numel()


def recall(found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]) -> float:
    """Instance recall: ``sum_i min(n_hat_i, n_i) / K``.

    The IRec of Ma et al., ICLR 2023, section 4. Counts that sum to more than K are not punished;
    `accuracy` does that, and the two agree where the sum is K.

    Args:
        found: Restored counts n_hat, int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> recall(found, true)
        0.8333333333333334
    """
    found, true = _checked(found, true)
    return int(torch.minimum(found, true).sum()) / int(true.sum())


def accuracy(found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]) -> float:
    """Instance accuracy: ``sum_i min(n_hat_i, n_i) / max(K, sum_i n_hat_i)``.

    The overlap of the two multisets of labels, relative to the larger one: 1 only if all is right.

    Args:
        found: Restored counts n_hat, int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> accuracy(found, true)
        0.8333333333333334
    """
    found, true = _checked(found, true)
    return int(torch.minimum(found, true).sum()) / max(int(true.sum()), int(found.sum()))


def exact_match(found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]) -> bool:
    """Whether every single count is right; the mean over batches is the exact-batch rate.

    Args:
        found: Restored counts n_hat, int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        ``n_hat == n`` for all classes.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> exact_match(found, true)
        False
    """
    found, true = _checked(found, true)
    return torch.equal(found, true)


def existence_precision(
    found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]
) -> float:
    """Share of the restored classes that are in the batch.

    Args:
        found: Restored counts n_hat (or 1 for each restored class), int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1. It is 1 where no class was restored: nothing claimed is nothing wrong, and
        `existence_recall` is 0 then.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> existence_precision(found, true)
        1.0
    """
    found, true = _checked(found, true)
    claimed = int((found > 0).sum())
    return int(((found > 0) & (true > 0)).sum()) / claimed if claimed else 1.0


def existence_recall(
    found: Integer[Tensor, " classes"], true: Integer[Tensor, " classes"]
) -> float:
    """Share of the batch's classes that were restored.

    Args:
        found: Restored counts n_hat (or 1 for each restored class), int64, shape (classes,).
        true: True counts n, int64, shape (classes,).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: These are not counts of the same classes, or the true ones are all zero.

    Examples:
        >>> import torch
        >>> found, true = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 1, 1, 2])
        >>> existence_recall(found, true)
        0.75
    """
    found, true = _checked(found, true)
    return int(((found > 0) & (true > 0)).sum()) / int((true > 0).sum())


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _checked(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int64 on one device, after making sure that they are counts of the same classes."""
    for name, counts in (("found", found), ("true", true)):
        if counts.ndim != 1 or not _is_integer(counts):
            raise ValueError(
                f"{name} counts of shape {tuple(counts.shape)} and {counts.dtype}: one integer per "
                "class is needed (counts_of makes them from labels)"
            )
        if bool((counts < 0).any()):
            raise ValueError(f"{name} counts hold {int(counts.min())}: none can be negative")
    if found.shape != true.shape:
        raise ValueError(
            f"{true.numel()} true counts for {found.numel()} classes: one per class is needed"
        )
    if not bool(true.any()):
        raise ValueError("the true counts are all zero: a batch holds at least one instance")
    return found.long(), true.long().to(found.device)
