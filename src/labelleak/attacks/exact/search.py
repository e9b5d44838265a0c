"""Base class of the searches for samples by the head and by the previous layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.corners import corner_direction, corner_seconds
from labelleak.attacks.exact.low_rank import LowRank
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.sparsity import sparse_directions

# Seconds of a search that looks for corners, since a shorter one is to confirm what is known, and
# the share of them that one linear program may take.
_SECONDS, _PROGRAM = 3.0, 0.2


@dataclass(frozen=True)
class Evidence:
    """Evidence for the samples that a search has found, in their order.

    Attributes:
        embeddings: Embeddings of the samples, float64, shape (samples, features).
        sure: Whether each sample stands clear of the gradient's errors and fits with no other
            label; bool, shape (samples,).
        too_weak: How many of the missing samples are too weak to be found.
        proves: Tests whether the samples are proven to make up the gradient. Slow.
    """

    embeddings: Float[Tensor, "samples features"]
    sure: Bool[Tensor, " samples"]
    too_weak: int
    proves: Callable[[], bool]


class SampleSearch(ABC):
    """A search for the samples of one batch in the gradient of one layer.

    Args:
        divisor: What the loss divides by, or None if it is unknown.
        none_yet: No samples, with inputs of the layer's width.
        generator: Source of randomness.
        clock: Time limit.

    Attributes:
        divisor: What the loss divides by, or None.
        found: The samples found so far.
    """

    def __init__(
        self,
        divisor: float | None,
        none_yet: Samples,
        generator: torch.Generator,
        clock: Clock,
    ) -> None:
        self.divisor = divisor
        self.found = none_yet
        self._generator = generator
        self._clock = clock

    @property
    @abstractmethod
    def factors(self) -> LowRank:
        """Factors of the layer's gradient; their rank is the number of samples it shows."""

    @property
    def is_complete(self) -> bool:
        """Whether all samples that the gradient shows are found."""
        return 0 < self.factors.rank <= len(self.found)

    def times(self, divisor: float | None) -> Int[Tensor, " samples"]:
        """How often each sample found is in the batch; once if the divisor is unknown."""
        if divisor is None:
            return torch.ones_like(self.found.labels)
        return (divisor / self.found.inverse_weights).round().clamp_min(1.0).long()

    @abstractmethod
    def run(self) -> None:
        """Search until all samples are found, time is up, or the search gives up."""

    @abstractmethod
    def contributions(self) -> Float[Tensor, "samples rows"]:
        """Gradient of each sample with respect to the layer's outputs, over its inverse weight."""

    @abstractmethod
    def rest_of_head(self) -> Float[Tensor, "classes columns"]:
        """The head's gradient minus the samples found."""

    @abstractmethod
    def evidence(self, divisor: float | None) -> Evidence:
        """Evidence for the samples found, given what the loss divides by."""

    @abstractmethod
    def _offer(self, directions: Float[Tensor, "directions rank"]) -> bool:
        """Take the sparse directions that are samples; returns whether any could be one."""

    def _scaled_by_bias(
        self, directions: Float[Tensor, "directions rank"]
    ) -> Float[Tensor, "points rank"]:
        """Scale directions so that the last entry of V a is 1; drop those where it is zero."""
        last = directions @ self.factors.right[-1]
        some = last.abs() > tolerances.NO_LENGTH
        return directions[some] / last[some][:, None]

    def _has_time_for_corner(self, space: Float[Tensor, "rank unknown"]) -> bool:
        seconds = self._clock.seconds
        cost = corner_seconds(len(self.factors.right), space.shape[1])
        return seconds >= _SECONDS and cost < _PROGRAM * seconds and not self._clock.is_over

    def _search_sparse(
        self,
        features: Float[Tensor, "features rank"],
        patience: int,
        *,
        at_first: int | None = None,
        affine: bool = True,
    ) -> None:
        """Search for sparse directions by rounds of guessed zeros, and of corners where that fails.

        Args:
            features: Rows of V that a ReLU may make zero, shape (features, rank).
            patience: Number of rounds in a row without a find after which to give up.
            at_first: The same while nothing has been found yet; None for `patience`.
            affine: Whether the last row of V stands for the bias.
        """
        fruitless, at_first = 0, patience if at_first is None else at_first
        guesses = True
        while not self.is_complete and not self._clock.is_over:
            before = len(self.found)
            if fruitless >= (patience if before else at_first):
                break
            factors, any_candidate = self.factors, False
            errors = factors.noise / factors.values
            space = factors.space_left(self.contributions())
            if guesses:
                guessed = sparse_directions(features, errors, space, self._generator)
                any_candidate = self._offer(guessed)
            if affine and len(self.found) == before and self._has_time_for_corner(space):
                corner = corner_direction(
                    features, factors.right[-1], errors, space, self._generator
                )
                any_candidate = self._offer(corner) or any_candidate
                # Of too many samples no guess is right: guesses resume once corners fail.
                guesses = len(self.found) == before
            fruitless = 0 if len(self.found) > before else fruitless + 1
            if not (any_candidate or len(self.found)) and fruitless == 1:
                # There may be no ReLU before the layer, and nothing to find: give up earlier.
                fruitless += patience // 2
