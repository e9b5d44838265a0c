"""Low-rank factors of a layer's gradient, and the error of its entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Columns beyond those asked for in a randomized decomposition, and by how much it has to be
# narrower than the full one to be faster.
_OVERSAMPLED, _WORTHWHILE = 24, 4
# Seconds of one core, measured: per multiplication of a product, and per entry and column of a
# full decomposition.
_SECONDS_PER_PRODUCT, _SECONDS_PER_ROTATION = 2e-10, 1e-9


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

    def cut(self, size: int) -> "LowRank":
        """The first factors alone, with the largest of the others as noise.

        Args:
            size: Number of singular values to keep.
        """
        if size == self.rank:
            return self
        sides = len(self.left) ** 0.5 + len(self.right) ** 0.5
        noise = max(self.noise, float(self.values[size]) / sides)
        return LowRank(self.left[:, :size], self.values[:size], self.right[:, :size], noise)

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


def decompose(
    matrix: Float[Tensor, "rows columns"], most: int | None, generator: torch.Generator
) -> LowRank:
    """The largest singular values of a gradient and their vectors.

    A randomized decomposition (Halko, Martinsson and Tropp 2011, two power iterations) takes the
    place of the full one where few of many singular values are asked for.

    Args:
        matrix: G.
        most: Number of values; None for all.
        generator: Source of randomness.

    Returns:
        The factors, with the root mean square of what they leave of G as their noise.
    """
    if most is None or not _is_randomized(matrix.shape, most):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        mixed = matrix @ torch.randn(
            matrix.shape[1], most + _OVERSAMPLED, generator=generator, dtype=torch.float64
        ).to(matrix)
        for _ in range(2):
            mixed = matrix @ (matrix.T @ torch.linalg.qr(mixed).Q)
        basis = torch.linalg.qr(mixed).Q
        small, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ small
    left, values, right = left[:, :most], values[:most], right[:most].T
    rest = float((matrix - (left * values) @ right.T).norm()) / matrix.numel() ** 0.5
    return LowRank(left, values, right, rest)


def decomposition_seconds(shape: torch.Size, most: int | None) -> float:
    """About how long `decompose` takes on one core, counted so that no clock decides.

    Args:
        shape: Rows and columns of the gradient.
        most: Number of values; None for all.
    """
    few, many = sorted(shape)
    if most is not None and _is_randomized(shape, most):
        return _SECONDS_PER_PRODUCT * 7 * few * many * (most + _OVERSAMPLED)
    return _SECONDS_PER_ROTATION * few * many * (few + _OVERSAMPLED)


def _is_randomized(shape: torch.Size, most: int) -> bool:
    return min(shape) > _WORTHWHILE * (most + _OVERSAMPLED)
