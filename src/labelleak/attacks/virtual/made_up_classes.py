"""Samples of classes that are made up, for a server that has none of its own."""

import math
from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.inputs import smooth_noise

# Smoothness of what a class's samples share: amplitudes fall as the frequency to minus this power.
_SLOPE_OF_ALL = 2.0
# From this value of `shape` on inputs are bounded, and in the middle part not below zero.
_BOUNDED, _UNBOUNDED = 0.25, 0.5
# How far the values of a child are those of its parent.
_KEPT = 0.8


@dataclass(frozen=True)
class Nature:
    """What data are like, each number in [0, 1]: drawn anew for every virtual client.

    Attributes:
        separability: How much of a sample its class decides.
        variety: How far classes differ in that.
        rank: In how many directions classes differ: from two to twice their number.
        smoothness: Of what is typical of a class.
        texture: Smoothness of what is a sample's own.
        noise: Share of white noise in what is a sample's own.
        common: Size of what all samples share.
        shape: Distribution of single entries: bounded and positive, bounded, or neither.
        size: Of all inputs.
    """

    separability: float
    variety: float
    rank: float
    smoothness: float
    texture: float
    noise: float
    common: float
    shape: float
    size: float


def drawn_nature(source: np.random.Generator) -> Nature:
    """Any nature, all of them equally likely."""
    return Nature(*source.random(9).tolist())


def child_of(parent: Nature, source: np.random.Generator) -> Nature:
    """A nature near another one."""
    new = astuple(drawn_nature(source))
    mixed = [
        _KEPT * old + (1.0 - _KEPT) * value for old, value in zip(astuple(parent), new, strict=True)
    ]
    return Nature(*mixed)


@dataclass(frozen=True, eq=False)
class MadeUpSamples:
    """Draws inputs of made-up classes; other patterns at every call.

    Every class has a pattern, and a sample is a mixture of it with noise of its own.

    Attributes:
        nature: Of the data.
        shape: Of one input: (channels, height, width) of an image, or anything else, which is
            white noise throughout.
        order: The classes, in the order in which their patterns and samples are drawn.
    """

    nature: Nature
    shape: tuple[int, ...]
    order: Int[Tensor, " classes"]

    def __call__(
        self, counts: Int[Tensor, " classes"], _: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs and labels with these counts."""
        nature, shape, order, classes = self.nature, self.shape, self.order, len(self.order)
        labels = torch.repeat_interleave(torch.arange(classes), counts[order])
        spread = 2.0 * torch.rand(classes, generator=generator) - 1.0
        decided = (0.2 + 0.7 * nature.separability) * (1.0 + 0.5 * nature.variety * spread)
        decided = decided.clamp(0.02, 0.98)[labels].reshape(-1, *[1] * len(shape))
        (own,) = smooth_noise(shape, len(labels), [0.3 + 1.9 * nature.texture], generator)
        white = torch.randn(len(labels), *shape, generator=generator)
        own = (1.0 - 0.5 * nature.noise) * own + 0.5 * nature.noise * white
        (common,) = smooth_noise(shape, 1, [_SLOPE_OF_ALL], generator)
        patterns = _patterns(nature, shape, classes, generator)
        made = decided * patterns[labels] + (1.0 - decided.square()).sqrt() * own
        made = made + 1.2 * nature.common * common
        if nature.shape < _UNBOUNDED:
            made = 2.0 * torch.sigmoid(2.0 * made)
            made = made if nature.shape < _BOUNDED else made - 1.0
        return math.exp(math.log(0.3) + math.log(1.4 / 0.3) * nature.size) * made, order[labels]


def _patterns(
    nature: Nature, shape: tuple[int, ...], classes: int, generator: torch.Generator
) -> Float[Tensor, "classes *shape"]:
    """One pattern for each class, of mean square one; some classes are more alike than others."""
    rank = 2 + round(nature.rank * (2 * classes - 2))
    (basis,) = smooth_noise(shape, rank, [0.8 + 1.7 * nature.smoothness], generator)
    mixture = torch.randn(classes, rank, generator=generator) * torch.linspace(1.0, 0.3, rank)
    patterns = mixture @ basis.flatten(1)
    patterns = patterns / patterns.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return patterns.reshape(classes, *shape)
