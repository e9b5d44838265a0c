"""Descents of single samples: from starts to embeddings whose q lies in the column space."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.levenberg_marquardt import minimize
from labelleak.attacks.exact.logit_gradient import logit_directions

_STEPS = 60
# Most entries of the derivatives in memory at once: 64 MB.
_ENTRIES = 2**23
# Arrays of all classes that the misfit of a point takes.
_TEMPORARIES = 8
_MANY_CLASSES = 2**16


def misfit(
    factors: HeadFactors, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """The part of the direction of q outside of the column space, relative to its length."""
    directions = logit_directions(factors.logits(points), labels)
    relative: Tensor = factors.outside(directions).norm(dim=1) / directions.norm(dim=1)
    return relative


def descend(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    *,
    enough: float,
    clock: Clock,
    steps: int = _STEPS,
    entries: int = _ENTRIES,
) -> tuple[Float[Tensor, "points rank"], Float[Tensor, " points"]]:
    """Move every point to where the direction of q for its label lies in the column space.

    Args:
        factors: Factors of the head's gradient.
        points: Coordinates of the starts.
        labels: Label of each start.
        enough: Norm of the part outside at which a point has arrived.
        clock: Time limit.
        steps: Largest number of steps.
        entries: Most entries of the derivatives in memory at once.

    Returns:
        The points reached, and the norms of the part outside; infinite for points that there was
        no time for.
    """
    classes = factors.left.shape[0]
    arrays = factors.unknowns or _TEMPORARIES
    # With very many classes, a step of many points would outlast the clock.
    arrays = arrays + _TEMPORARIES if classes > _MANY_CLASSES else arrays
    size = max(1, entries // (classes * arrays))
    reached, misfits = points.clone(), points.new_full((len(points),), torch.inf)
    for start in range(0, len(points), size):
        if start and clock.is_over:
            break
        part = slice(start, start + size)
        if not factors.unknowns:
            misfits[part] = misfit(factors, points[part], labels[part])
            continue
        reached[part], squares = minimize(
            ColumnSpaceFits(factors, labels[part]),
            points[part],
            steps=steps,
            enough=enough**2,
            clock=clock,
        )
        misfits[part] = squares.sqrt()
    return reached, misfits


@dataclass(frozen=True)
class ColumnSpaceFits:
    """One problem for each point: the part of q's direction outside of the column space.

    Attributes:
        factors: Factors of the head's gradient.
        labels: Label of each point.
    """

    factors: HeadFactors
    labels: Int[Tensor, " points"]

    def evaluate(self, points: Float[Tensor, "points rank"]) -> tuple[Tensor, ...]:
        """Squared norms of the parts outside, the directions, and the parts."""
        directions = logit_directions(self.factors.logits(points), self.labels)
        outside = self.factors.outside(directions)
        return outside.square().sum(dim=1), directions, outside

    def normal_equations(
        self, points: Float[Tensor, "points rank"], evaluated: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "points moves moves"], Float[Tensor, "points moves"]]:
        """J^T J and J^T r over the moves of every point."""
        _, directions, outside = evaluated
        jacobian = direction_slopes(self.factors, directions, self.labels)
        gradient = (jacobian.transpose(1, 2) @ outside[:, :, None])[..., 0]
        return jacobian.transpose(1, 2) @ jacobian, gradient

    def move(
        self, points: Float[Tensor, "points rank"], steps: Float[Tensor, "points moves"]
    ) -> Float[Tensor, "points rank"]:
        """The points after their moves."""
        return points + steps @ self.factors.directions.T

    def pick(self, chosen: Tensor) -> "ColumnSpaceFits":
        """The problems of some points."""
        return ColumnSpaceFits(self.factors, self.labels[chosen])


def direction_slopes(
    factors: HeadFactors,
    directions: Float[Tensor, "points classes"],
    labels: Int[Tensor, " points"],
) -> Float[Tensor, "points classes moves"]:
    """Jacobian of the part of q's direction outside of the column space.

    Args:
        factors: Factors of the head's gradient.
        directions: Directions of q at the points, from `logit_directions`.
        labels: Label of each point.
    """
    slopes = factors.head @ factors.directions
    shares = directions.scatter(1, labels[:, None], 0.0)
    jacobian = shares[:, :, None] * (slopes - (shares @ slopes)[:, None, :])
    inside = torch.einsum("cr,bcm->brm", factors.left, jacobian)
    return jacobian - torch.einsum("cr,brm->bcm", factors.left, inside)
