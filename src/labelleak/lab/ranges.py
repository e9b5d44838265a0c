"""Ranges of seeds and samples that are kept apart: development, evaluation, and all.

Whoever chooses a constant looks at the development range, and what is reported is of the evaluation
range. The two share no seed and no sample: each has seeds of its own, for batches and networks, and
every other sample of each class of a split. An experiment says which range it uses; the evaluation
range unless it says otherwise.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from labelleak.lab.seeds import derive_seed

RangeName = Literal["development", "evaluation", "all"]


@dataclass(frozen=True)
class Range:
    """What batches and networks are made of.

    Attributes:
        name: Its name.
        seeds: The seeds it may use. They differ in their last 32 bits, the only ones that torch's
            generator on the CPU takes.
        rank: Which of every two samples of a class belong to it, 0 or 1; None for all samples.

    Examples:
        >>> import torch
        >>> from labelleak.lab.ranges import DEVELOPMENT, EVALUATION
        >>> DEVELOPMENT.numbered(13), EVALUATION.numbered(13)
        (1073741837, 2147483661)
        >>> EVALUATION.samples(torch.tensor([0, 0, 1, 0, 1, 0])).tolist()
        [1, 4, 5]
    """

    name: RangeName
    seeds: range
    rank: int | None

    def numbered(self, number: int) -> int:
        """The seed of that number, counted inside the range.

        Args:
            number: From 0.

        Returns:
            The seed.

        Raises:
            ValueError: The range has fewer seeds.
        """
        if not 0 <= number < self.seeds.stop - self.seeds.start:
            raise ValueError(
                f"seed number {number} is outside the range {self.name!r}: it must be 0 to "
                f"{self.seeds.stop - self.seeds.start - 1}"
            )
        return self.seeds.start + number

    def derive(self, *purpose: int | str) -> int:
        """A seed of this range for one purpose, see `derive_seed`.

        Args:
            *purpose: What the seed is for.

        Returns:
            The seed.
        """
        return self.numbered(derive_seed(*purpose) % (self.seeds.stop - self.seeds.start))

    def samples(self, labels: Int64[Tensor, " samples"]) -> Int64[Tensor, " part"]:
        """The samples of a split that belong to this range.

        Args:
            labels: Classes of all samples of the split, int64, shape (samples,).

        Returns:
            Their indices, ascending, int64.
        """
        if self.rank is None:
            return torch.arange(len(labels))
        by_class = labels.argsort(stable=True)
        sizes = torch.bincount(labels)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        rank = torch.empty_like(labels)
        rank[by_class] = torch.arange(len(labels)) - starts
        return (rank % 2 == self.rank).nonzero()[:, 0]


DEVELOPMENT = Range("development", range(2**30, 2**31), 0)
EVALUATION = Range("evaluation", range(2**31, 2**32), 1)
ALL = Range("all", range(2**63), None)
"""No part is held back: for runs that are compared with published ones on the same samples."""

RANGES: dict[RangeName, Range] = {one.name: one for one in (DEVELOPMENT, EVALUATION, ALL)}


def range_of(seed: int) -> Range:
    """The range that a seed belongs to; what is derived from it has to stay in there.

    Args:
        seed: The seed.

    Returns:
        The range: ``all``, if neither of the others has the seed.
    """
    return next((one for one in (DEVELOPMENT, EVALUATION) if seed in one.seeds), ALL)
