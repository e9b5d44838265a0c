"""Batches and learning rates of a network's training, one iteration after the other."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from labelleak.lab.definition import Training
from labelleak.lab.ranges import range_of


@dataclass(frozen=True)
class Schedule:
    """Batches and learning rates of a training, by iteration (one step of the optimizer).

    Attributes:
        training: The training.
        samples: Indices of the samples that it uses, int64, shape (samples,).
    """

    training: Training
    samples: Int64[Tensor, " samples"]

    @property
    def batch_size(self) -> int:
        """Samples in one iteration."""
        return min(self.training.batch_size, len(self.samples))

    @property
    def per_epoch(self) -> int:
        """Iterations in an epoch; the last samples, which do not fill a batch, are left out."""
        return len(self.samples) // self.batch_size

    @property
    def per_step(self) -> int:
        """Iterations in one step of the training, which counts iterations or epochs."""
        return self.per_epoch if self.training.unit == "epochs" else 1

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        step = iteration // self.per_step
        drops = sum(step >= self.training.total * eighths // 8 for eighths in (3, 5, 7))
        return self.training.learning_rate * 0.1**drops

    def order(self, epoch: int) -> Int64[Tensor, " samples"]:
        """The samples in the order of an epoch, counted from 0."""
        number = self.training.seed
        seed = range_of(number).derive(number, "order", epoch)
        generator = torch.Generator().manual_seed(seed)
        return self.samples[torch.randperm(len(self.samples), generator=generator)]
