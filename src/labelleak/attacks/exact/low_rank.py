"""Low-rank factors of a layer's gradient, and the error of its entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Singular factors of a gradient ``G = U S V^T``, cut at its rank; all float64.

    Attributes:
        left: U, shape (rows, rank).
        values: S, shape (rank,), descending.
        right: V, shape (columns, rank).
        noise: Size of the error of one entry of G.
    """

    left: Float[Tensor, "rows rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "columns rank"]
    noise: float

    @property
    def rank(self) -> int:
        """Number of linearly independent samples that the gradient shows."""
        return self.values.numel()

    def outside(self, vectors: Float[Tensor, "vectors rows"]) -> Float[Tensor, "vectors rows"]:
        """The part of each vector that lies outside of the column space."""
        return vectors - (vectors @ self.left) @ self.left.T

    def input_errors(self, points: Float[Tensor, "points rank"]) -> Float[Tensor, "points 1"]:
        """Size of the error of an entry of ``V a``, for each point a."""
        errors: Tensor = self.noise * (points / self.values).norm(dim=1, keepdim=True)
        return errors

    def space_left(
        self, contributions: Float[Tensor, "samples rows"]
    ) -> Float[Tensor, "rank unknown"]:
        """Orthonormal basis of the space that holds the coordinates of the other samples.

        Samples of one batch are biorthogonal: the coordinates of the others are orthogonal to
        ``S^-1 U^T c`` for every known contribution c.
        """
        constraints = (contributions @ self.left / self.values).T
        basis, _ = torch.linalg.qr(constraints, mode="complete")
        left: Tensor = basis[:, len(contributions) :]
        return left
