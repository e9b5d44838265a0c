"""What the searches by the head and by the previous layer have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.low_rank import LowRank
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.sparsity import sparse_directions


@dataclass(frozen=True)
class Evidence:
    """What a search has to show for the samples that it found, in their order.

    Attributes:
        embeddings: Of the samples, float64, shape (samples, features).
        sure: Which of them stand clear of the gradient's errors, and fit with no other label; bool,
            shape (samples,).
        too_weak: How many of the samples that are missing are too weak to be found.
        proves: Says whether they are proven to be what the gradient is made of. Takes time.
    """

    embeddings: Float[Tensor, "samples features"]
    sure: Bool[Tensor, " samples"]
    too_weak: int
    proves: Callable[[], bool]


class SampleSearch(ABC):
    """A search for the samples of one batch in the gradient of one layer.

    Args:
        divisor: What the loss divides by; None where it is unknown.
        none_yet: No samples, of the layer's width.
        generator: Source of all guesses.
        clock: When to stop at the latest.

    Attributes:
        divisor: As given.
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
        """Of the layer's gradient. Their rank is the number of samples that it shows."""

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to find."""
        return 0 < self.factors.rank <= len(self.found)

    def times(self, divisor: float | None) -> Int[Tensor, " samples"]:
        """How often each sample found is in the batch, at least once; once without a divisor."""
        if divisor is None:
            return torch.ones_like(self.found.labels)
        return (divisor / self.found.inverse_weights).round().clamp_min(1.0).long()

    @abstractmethod
    def run(self) -> None:
        """Search until all samples are found, the time is over, or the search is fruitless."""

    @abstractmethod
    def contributions(self) -> Float[Tensor, "samples rows"]:
        """Derivative of each found sample's loss by the layer's outputs, by its inverse weight."""

    @abstractmethod
    def rest_of_head(self) -> Float[Tensor, "classes columns"]:
        """What the samples found leave of the head's gradient."""

    @abstractmethod
    def evidence(self, divisor: float | None) -> Evidence:
        """What speaks for the samples found, for a divisor as they have it."""

    @abstractmethod
    def _offer(self, directions: Float[Tensor, "directions rank"]) -> bool:
        """Take those sparse directions that are samples; whether any may have been one."""

    def _scaled_by_bias(
        self, directions: Float[Tensor, "directions rank"]
    ) -> Float[Tensor, "points rank"]:
        """Those with a last entry of V a, scaled to make it 1."""
        last = directions @ self.factors.right[-1]
        some = last.abs() > tolerances.NO_LENGTH
        return directions[some] / last[some][:, None]

    def _search_sparse(self, features: Float[Tensor, "features rank"], patience: int) -> None:
        """Guess zeros, each time in the space that the samples found so far leave.

        Args:
            features: Rows of V whose entries are zero behind a ReLU.
            patience: Rounds in a row that find nothing, after which it stops.
        """
        fruitless = 0
        while not self.is_complete and fruitless < patience and not self._clock.is_over:
            before = len(self.found)
            factors = self.factors
            any_candidate = self._offer(
                sparse_directions(
                    features,
                    factors.noise / factors.values,
                    factors.space_left(self.contributions()),
                    self._generator,
                )
            )
            fruitless = 0 if len(self.found) > before else fruitless + 1
            if not (any_candidate or len(self.found)) and fruitless == 1:
                # Without a ReLU before the layer there is nothing to find.
                fruitless += patience // 2
