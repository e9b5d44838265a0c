"""Numbers: rounding errors of tensors, and linear algebra that several attacks share."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = torch.finfo(torch.float64).eps
# Floating-point formats that are read, coarsest first.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Entries converted at once, few enough for a processor's cache.
_BLOCK = 2**16


class Solution(NamedTuple):
    """Solution of a linear system, and its condition number in the 1-norm (inf if singular)."""

    values: Float[Tensor, " unknowns"]
    condition: float


def solve_square(
    matrix: Float[Tensor, "unknowns unknowns"], right: Float[Tensor, " unknowns"]
) -> Solution:
    """The minimum-norm least-squares solution of a square system, fast where it is regular.

    Elimination costs a small fraction of a singular value decomposition. Only where the matrix is
    singular to working precision, as the condition number tells, does the decomposition decide.
    """
    factors, pivots, failed = torch.linalg.lu_factor_ex(matrix)
    if not int(failed):
        condition = float(torch.linalg.matrix_norm(matrix, 1)) * _inverse_norm(factors, pivots)
        if condition * _EPSILON * matrix.shape[0] < 1.0:
            values = torch.linalg.lu_solve(factors, pivots, right[:, None])[:, 0]
            return Solution(values, condition)
    return Solution(minimum_norm_least_squares(matrix, right), torch.inf)


def _inverse_norm(factors: Float[Tensor, "n n"], pivots: Tensor) -> float:
    """Estimate of the 1-norm of the inverse (Hager 1984, as in Higham 1988, algorithm 2.4)."""
    size = factors.shape[0]
    probe = torch.full((size, 1), 1.0 / size, dtype=factors.dtype, device=factors.device)
    estimate = 0.0
    for _ in range(5):
        image = torch.linalg.lu_solve(factors, pivots, probe)
        estimate = max(estimate, float(image.abs().sum()))
        slope = torch.linalg.lu_solve(factors, pivots, torch.sign(image), adjoint=True)
        steepest = int(slope.abs().argmax())
        if not float(slope[steepest].abs()) > float((slope * probe).sum()):
            break
        probe = torch.zeros_like(probe)
        probe[steepest] = 1.0
    return estimate


def minimum_norm_least_squares(
    matrix: Float[Tensor, "equations unknowns"], right: Float[Tensor, " equations"]
) -> Float[Tensor, " unknowns"]:
    """What the Moore-Penrose inverse of the matrix makes of the right-hand side.

    Singular values below ``max(shape) * machine epsilon`` times the largest count as zero.
    """
    cutoff = _EPSILON * max(matrix.shape)
    if matrix.device.type == "cpu":
        driver = "gelsd"
        solved: Tensor = torch.linalg.lstsq(matrix, right[:, None], rcond=cutoff, driver=driver)[0]
    else:
        solved = torch.linalg.pinv(matrix, rtol=cutoff) @ right[:, None]
    return solved[:, 0]


def product_of_low_rank(
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "inner columns"],
    rank: int | None,
    rounding: float,
) -> Float[Tensor, "rows columns"]:
    """The product of two matrices, cheaper where the left one is known to have a small rank.

    A gradient is a sum of one rank-one matrix per sample. A random projection finds the space of
    its columns (Halko, Martinsson and Tropp 2011, algorithm 4.1); the projected matrix stands in
    for the given one if what it leaves out is no more than rounding errors.

    Args:
        left: float64, shape (rows, inner).
        right: float64, shape (inner, columns).
        rank: Upper bound on the rank of `left`, or None when there is none.
        rounding: Typical rounding error of an entry of `left`.

    Returns:
        float64, shape (rows, columns).
    """
    oversampled = None if rank is None else rank + 8
    if oversampled is None or 8 * oversampled > min(left.shape):
        return left @ right
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(left.shape[1], oversampled, dtype=torch.float64, generator=generator)
    columns, _ = torch.linalg.qr(left @ probes.to(left.device))
    coordinates = columns.T @ left
    missed = (
        torch.linalg.vector_norm(left).square() - torch.linalg.vector_norm(coordinates).square()
    )
    if float(missed) > left.numel() * rounding**2:
        return left @ right
    product: Tensor = columns @ (coordinates @ right)
    return product


def numerical_rank(
    singular_values: Float[Tensor, " values"], shape: torch.Size, rounding: float
) -> int:
    """Number of singular values above the rounding noise of the matrix they belong to.

    Independent errors of one size in all entries have a norm of about that size times
    ``sqrt(rows) + sqrt(columns)``.

    Args:
        singular_values: Of the matrix, computed in float64, shape (values,).
        shape: Rows and columns of the matrix.
        rounding: Typical error of one entry, in the unit of the matrix.

    Returns:
        The rank; at least 1 for a matrix that is not zero.
    """
    noise = rounding * (shape[0] ** 0.5 + shape[1] ** 0.5)
    # Values below the error of the decomposition itself cannot be told from zero either.
    if singular_values.numel():
        noise = max(noise, _EPSILON * max(shape) * float(singular_values.max()))
    return max(int((singular_values > noise).sum()), int(singular_values.any()))


def root_mean_square(tensor: Tensor) -> float:
    """Root of the mean square of all entries, computed in double precision."""
    norms = [
        float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in row_blocks(tensor)
    ]
    return math.hypot(*norms) / math.sqrt(max(tensor.numel(), 1))


def sums_of_rows(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    """Sum of every row, in double precision; the conversion stays in the processor's cache."""
    return torch.cat([part.sum(dim=1, dtype=torch.float64) for part in row_blocks(matrix)])


def perplexity(probabilities: Float[Tensor, " classes"]) -> float:
    """Number of classes that an even distribution of the same entropy would have.

    Args:
        probabilities: Positive, summing to one, shape (classes,).

    Returns:
        Between 1 and the number of classes.
    """
    return float(torch.exp(-(probabilities * probabilities.log()).sum()))


def machine_epsilon(tensor: Tensor) -> float:
    """That of the coarsest floating-point format which holds all entries as they are.

    A gradient computed in single precision and stored in double precision is no better for it.
    """
    own = torch.finfo(tensor.dtype).eps
    # A few entries nearly always decide, so try them first.
    parts = (tensor[:1], *row_blocks(tensor))
    for dtype in DTYPES:
        epsilon = torch.finfo(dtype).eps
        if epsilon > own and all(
            torch.equal(part.to(dtype).to(part.dtype), part) for part in parts
        ):
            return float(epsilon)
    return float(own)


def row_blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Rows of a tensor in blocks, of which a copy in another format is small."""
    return torch.split(tensor, 1 + _BLOCK * len(tensor) // max(tensor.numel(), 1))


def implied_rounding(tensor: Tensor, size: float | None = None) -> float:
    """Rounding error of an entry that its format implies: a few epsilons of a typical entry.

    That is what sums of products leave, in the unit of the entries.

    Args:
        tensor: Any entries.
        size: Their `root_mean_square`, where it is at hand.
    """
    return 4 * machine_epsilon(tensor) * (root_mean_square(tensor) if size is None else size)
