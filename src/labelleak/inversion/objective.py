"""Distances between a network's gradient and the observed one, with their derivatives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Distance(NamedTuple):
    """The distance of a gradient from its target, and the derivative.

    Attributes:
        value: The distance, one number.
        cotangents: Derivative of the distance by each tensor of the gradient, divided by `factor`.
        factor: One number to multiply the derivatives by. It is applied to the images' derivative,
            which is smaller than the cotangents.
    """

    value: Float[Tensor, ""]
    cotangents: list[Tensor]
    factor: Tensor | float


DistanceFunction = Callable[[Sequence[Tensor], Sequence[Tensor]], Distance]
"""From a gradient and minus its target, one tensor per parameter each, to `Distance`."""


def cosine_distance(gradients: Sequence[Tensor], negatives: Sequence[Tensor]) -> Distance:
    """One minus the cosine of the angle between two gradients, over all parameters together.

    For a target t of norm 1 the closed form ``d(1 - <g, t> / |g|) = (<g, t> g / |g|^2 - t) / |g|``
    takes three passes over the parameters; autograd takes several more.

    Args:
        gradients: One tensor per parameter.
        negatives: Minus the target, of norm 1 over all parameters together.

    Returns:
        The distance, in [0, 2].

    References:
        Geiping et al., "Inverting gradients", NeurIPS 2020, equation 4.
    """
    product = -_dot(gradients, negatives)
    square = _dot(gradients, gradients)
    norm = square.sqrt()
    ratio = product / square
    cotangents = [
        torch.addcmul(negative, gradient, ratio)
        for gradient, negative in zip(gradients, negatives, strict=True)
    ]
    return Distance(1.0 - product / norm, cotangents, 1.0 / norm)


def squared_distance(gradients: Sequence[Tensor], negatives: Sequence[Tensor]) -> Distance:
    """The squared Euclidean distance of two gradients, over all parameters together.

    Args:
        gradients: One tensor per parameter.
        negatives: Minus the target.

    Returns:
        The distance, at least 0.

    References:
        Zhu et al., "Deep leakage from gradients", NeurIPS 2019, equation 3.
    """
    differences = [g + n for g, n in zip(gradients, negatives, strict=True)]
    return Distance(_dot(differences, differences), differences, 2.0)


def total_variation(
    images: Float[Tensor, "batch channels height width"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch channels height width"]]:
    """The anisotropic total variation of images, and its derivative.

    Args:
        images: The images, on any scale.

    Returns:
        The mean of ``|x[i, j+1] - x[i, j]|`` plus the mean of ``|x[i+1, j] - x[i, j]|``, over all
        images and channels; and its derivative by `images`, 0 where two neighbors are equal.
    """
    derivative = torch.zeros_like(images)
    value = images.new_zeros(())
    for dimension in (2, 3):
        size = images.shape[dimension] - 1
        if size < 1:
            continue
        above, below = images.narrow(dimension, 1, size), images.narrow(dimension, 0, size)
        difference = above - below
        value += difference.abs().mean()
        slope = difference.sign_().div_(difference.numel())
        derivative.narrow(dimension, 1, size).add_(slope)
        derivative.narrow(dimension, 0, size).sub_(slope)
    return value, derivative


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    products = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(one, other, strict=True)]
    return torch.stack(products).sum()
