"""Samples that a search has found."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances


@dataclass(frozen=True)
class Samples:
    """Samples of a batch as one layer of the network sees them.

    Attributes:
        inputs: Inputs of the layer, with a 1 appended where the bias gradient is known; float64,
            shape (samples, columns).
        labels: int64, shape (samples,).
        inverse_weights: The loss's divisor over how often each sample is in the batch, float64,
            shape (samples,).
    """

    inputs: Float[Tensor, "samples columns"]
    labels: Int[Tensor, " samples"]
    inverse_weights: Float[Tensor, " samples"]

    @classmethod
    def none(cls, like: Float[Tensor, "rows columns"]) -> "Samples":
        """No samples, of a layer with a gradient of this shape."""
        empty = like.new_zeros(0)
        return cls(like.new_zeros(0, like.shape[1]), empty.long(), empty)

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, chosen: Tensor) -> "Samples":
        """Some of the samples, by index or mask."""
        return Samples(self.inputs[chosen], self.labels[chosen], self.inverse_weights[chosen])

    def join(self, others: "Samples") -> "Samples":
        """These and others without duplicates; the first of equal samples stays."""
        every = Samples(
            torch.cat([self.inputs, others.inputs]),
            torch.cat([self.labels, others.labels]),
            torch.cat([self.inverse_weights, others.inverse_weights]),
        )
        return every.pick(every.is_first())

    def is_first(self) -> Bool[Tensor, " samples"]:
        """Whether each sample differs from all before it."""
        gram = self.inputs @ self.inputs.T
        squares = gram.diagonal()
        distances = squares[:, None] + squares - 2.0 * gram
        same = distances < tolerances.SAME_SAMPLE**2 * squares
        same &= self.labels[:, None] == self.labels
        return ~same.tril(diagonal=-1).any(dim=1)
