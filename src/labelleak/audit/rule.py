"""The rule that an audit is judged by: what is measured, and how much of it may leave."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from labelleak.cells import USUAL_FLOOR
from labelleak.errors import UnreadableFile
from labelleak.storage import read_numbers

Measure = Literal["accuracy", "advantage", "small-cells", "exact"]
"""What is measured: see `Rule`."""

_USUAL_THRESHOLD = 0.5
SHARES = ("accuracy", "advantage")
"""The measures that are shares, and have a threshold."""


@dataclass(frozen=True)
class Rule:
    """What is measured of an update, and how much of it may leave.

    Attributes:
        measure: ``"advantage"``: the share of what the best guess without the update leaves open
            that the attack gets right. ``"accuracy"``: the share of the labels that it gets right.
            ``"small-cells"``: whether a class with fewer than `floor` samples, or none, is told
            with confidence. ``"exact"``: whether all counts are right. None: ``"accuracy"`` where
            there is a threshold, as in rules older than the other measures; else ``"advantage"``.
        threshold: Largest share that may leave, 0 to 1; None for no limit, and for measures that
            are no shares.
        floor: For ``"small-cells"``, the smallest count that may be told, at least 2.
        prior: For the best guess, the share of each class as the public knows it; None for the same
            share of each.

    Raises:
        ValueError: A value is impossible; the message begins with its name.

    Examples:
        >>> Rule(threshold=0.5).measure, Rule().measure
        ('accuracy', 'advantage')
        >>> Rule("small-cells").limit
        'no class with fewer than 10 samples, or none, told with confidence'
    """

    measure: Measure | None = None
    threshold: float | None = None
    floor: int = USUAL_FLOOR
    prior: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.measure is None:
            of_old = "advantage" if self.threshold is None else "accuracy"
            object.__setattr__(self, "measure", of_old)
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure = {self.measure!r}: choose {', '.join(get_args(Measure))}")
        if type(self.floor) is not int or self.floor < 2:
            raise ValueError(f"floor = {self.floor!r}: a whole number of at least 2 is needed")
        if self.prior is not None:
            object.__setattr__(self, "prior", _checked_shares(self.prior))
        if self.threshold is None:
            return
        if self.measure not in SHARES:
            raise ValueError(
                f"threshold: goes with accuracy or advantage, and not with {self.measure}; leave "
                "it out"
            )
        share = "a share from 0 to 1 (not percent)"
        if not _is_real(self.threshold):
            raise ValueError(f"threshold = {self.threshold!r}: {share} is needed")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold}: {share}")

    def with_usual_limit(self) -> "Rule":
        """The rule, with half of the share as its limit where it has none."""
        if self.has_limit:
            return self
        return replace(self, threshold=_USUAL_THRESHOLD)

    @property
    def has_limit(self) -> bool:
        """Whether it says how much may leave."""
        return self.measure not in SHARES or self.threshold is not None

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.measure == "exact":
            return "not all counts exactly"
        if self.measure == "small-cells":
            return f"no class with fewer than {self.floor} samples, or none, told with confidence"
        what = "the labels" if self.measure == "accuracy" else "what a guess leaves open"
        return "no limit" if self.threshold is None else f"at most {self.threshold:.1%} of {what}"


def read_prior(path: Path | str) -> tuple[float, ...]:
    """Read the public shares of the classes from a text file.

    Args:
        path: The file: one non-negative number for each class, separated by spaces, commas or line
            breaks; counts will do as well as shares.

    Returns:
        The numbers in the order of the file.

    Raises:
        UnreadableFile: There is no such file, or it holds anything else. The message names the
            line.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "prior.txt")
        ...     _ = path.write_text("0.9, 0.1")
        ...     read_prior(path)
        (0.9, 0.1)
    """
    shares = read_numbers(path, "class shares", "share of a class", allows_zero=True)
    if not any(shares):
        raise UnreadableFile(f"{path}: all shares are 0")
    return tuple(shares)


def _checked_shares(prior: object) -> tuple[float, ...]:
    needed = "numbers of at least 0, one for each class and not all 0, are needed"
    if not isinstance(prior, list | tuple) or not prior:
        raise ValueError(f"prior = {prior!r}: {needed}")
    if not all(_is_real(share) and 0 <= share < math.inf for share in prior) or not any(prior):
        raise ValueError(f"prior = {prior!r}: {needed}")
    return tuple(float(share) for share in prior)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
