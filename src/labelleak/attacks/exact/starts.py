"""Starts of the descents: random points and labels that may be near a sample of the batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.head_factors import HeadFactors

# Standard deviation of the logits of a trained network's sample.
_SPREAD = 3.0
# Quotients are shortened to this multiple of their median length.
_LONGEST = 10.0
# Standard deviation of the logarithm of the length of a step along W.
_LENGTH_VARIATION = 0.7


def draw_starts(
    factors: HeadFactors, number: int, generator: torch.Generator
) -> tuple[Float[Tensor, "starts rank"], Int[Tensor, " starts"]]:
    """Draw starts: two thirds mixtures of rows' quotients, one third steps along rows of W.

    Args:
        factors: Factors of the head's gradient, or of its rest.
        number: Number of starts.
        generator: Source of randomness.

    Returns:
        Coordinates, and labels; rows with more weight in the gradient are drawn more often.
    """
    leverage = factors.left.square().sum(dim=1)

    def draw() -> Tensor:
        drawn = torch.multinomial(leverage.cpu(), number, replacement=True, generator=generator)
        return drawn.to(leverage.device)

    labels, others = draw(), draw()
    share = torch.rand(number, 1, generator=generator, dtype=torch.float64).to(leverage)
    quotients = _quotients(factors)
    size = quotients[labels].norm(dim=1).median()
    lengths = quotients.norm(dim=1, keepdim=True)
    quotients = quotients * (_LONGEST * size / lengths).clamp_max(1.0)
    mixed = quotients[labels] * share + quotients[others] * (1.0 - share)
    slopes = (factors.head - factors.head.mean(dim=0)) @ factors.directions
    slopes = torch.nn.functional.normalize(slopes, dim=1)
    variation = torch.randn(number, 1, generator=generator, dtype=torch.float64).to(leverage)
    length = size * torch.exp(_LENGTH_VARIATION * variation)
    along = (slopes[labels] * share + slopes[others] * (1.0 - share)) * length
    along = factors.origin + along @ factors.directions.T
    third = torch.arange(number, device=labels.device) % 3 == 0
    points = torch.where(third[:, None], along, mixed)
    if factors.affine:
        slip = (points @ factors.right[-1] - 1.0)[:, None]
        points = points - slip * factors.origin
    return points, labels


def _quotients(factors: HeadFactors) -> Float[Tensor, "classes rank"]:
    """Weight gradient of each class over its bias gradient: a weighted mean of embeddings."""
    rows = factors.left * factors.values
    if factors.affine:
        last = factors.matrix[:, -1:]
        return rows / torch.where(last.abs() < 1e-30, 1.0, last)
    sizes = rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    quotients: Tensor = rows * (-typical_length(factors) / sizes)
    return quotients


def typical_length(factors: HeadFactors) -> Float[Tensor, ""]:
    """Length at which the logits of a direction spread as a trained network's do."""
    return _SPREAD / factors.head.std(dim=0).square().mean().sqrt()
