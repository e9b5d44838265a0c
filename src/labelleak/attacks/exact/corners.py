"""Samples as corners of a polytope: of the nonnegative vectors in an affine space.

Behind a ReLU no entry of a sample's vector is below zero. Let the samples' vectors be linear in the
columns of a factor R, ``x_k = R a_k``, with a last entry of one, which stands for the bias. All a
with ``R a >= 0`` and that last entry are a polytope that holds every sample. A sample has many
zeros, each of which is a face, so it is a sharp corner, where a random linear objective is likely
to have its minimum. No zeros have to be guessed, so samples may be many.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.sparsity import rows_above_errors, single_directions

# Least share of the entries that an objective is a sum of: the more of them, the more likely is a
# sample, and the more often the same.
_SUMMED = 0.02
# How far below zero an entry may be, beside its typical size; solvers allow a tenth of that anyway.
_SLACK = 1e-6
# Up to where an entry passes for zero, from as exact as the solver to hardly.
_ZEROS = (1e-5, 1e-4, 1e-3, 1e-2)
# Seconds of one core per entry and squared unknown of a linear program, measured.
_SECONDS_PER_ENTRY = 3e-8


def corner_seconds(entries: int, unknown: int) -> float:
    """About how long `corner_direction` takes on one core, counted so that no clock decides.

    Args:
        entries: Number of entries that are at least zero.
        unknown: Number of unknowns.
    """
    return _SECONDS_PER_ENTRY * entries * unknown**2


def corner_direction(
    factor: Float[Tensor, "entries rank"],
    bias: Float[Tensor, " rank"],
    errors: Float[Tensor, " rank"],
    space: Float[Tensor, "rank unknown"],
    generator: torch.Generator,
) -> Float[Tensor, "found rank"]:
    """The coordinates a of one corner that has far more zeros than unknowns, or none.

    Args:
        factor: R, float64, shape (entries, rank).
        bias: The row of the vectors' last entry, which is one, shape (rank,).
        errors: Size of the error of R's entries in each column, shape (rank,).
        space: Orthonormal basis of the space where a lies but for errors, shape (rank, unknown).
        generator: Source of the objective.

    Returns:
        Unit vectors; none as well where no vector is nonnegative, or one is zero in all entries.
    """
    rank, unknown = space.shape
    rows = rows_above_errors(factor, errors)
    level = bias @ space
    if len(rows) < 2 * unknown or not bool(level.norm() > tolerances.NO_LENGTH):
        return factor.new_zeros(0, rank)
    # Entries of the shortest vector with that last entry have about the size of a sample's.
    inside = rows @ space
    shortest = level / level.square().sum()
    size = float((inside @ shortest).square().mean().sqrt())
    error = float((errors * (space @ shortest)).norm())
    if size <= max(tolerances.ZERO * error, tolerances.NO_LENGTH):
        # A vector of zeros is a sample, and the only corner: all others are on edges from there.
        return factor.new_zeros(0, rank)
    inside = inside / size
    parts, chosen = torch.rand(2, len(rows), generator=generator, dtype=torch.float64)
    share = _SUMMED ** torch.rand(1, generator=generator, dtype=torch.float64)
    objective = (parts * (chosen < share)).to(inside) @ inside
    # The dual program, of as many equations as unknowns, is solved sooner.
    solved = linprog(
        np.append(np.full(len(rows), _SLACK), -1.0),
        A_eq=torch.cat([inside, level[None]]).T.cpu().numpy(),
        b_eq=objective.cpu().numpy(),
        bounds=[(0.0, None)] * len(rows) + [(None, None)],
        method="highs-ds",
        options={"presolve": False},
    )
    if solved.status != 0:
        return factor.new_zeros(0, rank)
    # The space is only as exact as the samples that were taken out, and the solver is not either:
    # a sample is orthogonal to the rows that are nearly zero, if these are enough.
    sizes = inside @ torch.from_numpy(-solved.eqlin.marginals).to(inside)
    found = [rows[sizes <= limit] for limit in _ZEROS]
    directions = [_orthogonal_to(zeros) for zeros in found if len(zeros) >= rank - 1]
    return single_directions(rows, errors, torch.stack([*directions, factor.new_ones(rank)])[:-1])


def _orthogonal_to(rows: Float[Tensor, "rows rank"]) -> Float[Tensor, " rank"]:
    """The unit vector that is as orthogonal to all rows as can be."""
    padded = torch.cat([rows, torch.zeros_like(rows[:1])])
    vector: Tensor = torch.linalg.svd(torch.linalg.qr(padded).R).Vh[-1]
    return vector
