"""Samples as the sparse directions of a low-rank factor (SPEAR, Dimitrov et al., NeurIPS 2024).

Behind a ReLU many entries of each sample's vector are zero, while mixtures of several samples have
hardly any. Let the samples' vectors be linear in the columns of a factor R, ``x_k = R a_k``. A
guess of r - 1 entries that are zero in x_k yields a_k up to scale: it is orthogonal to those rows
of R. Further zeros show that the guess was right.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact import tolerances

# Guesses of one round: between these numbers, and no more than so many entries in memory.
_FEWEST_GUESSES, _MOST_GUESSES, _ENTRIES = 64, 4096, 4_000_000
# So many guesses at most have the first half of their rows in common.
_TURNS = 16
# Every guess is tried on so many rows, and of each size of error so many are compared and kept.
_SCREENED, _COMPARED, _KEPT = 512, 768, 48
_REFINEMENTS = 3
# One less the cosine of directions that are the same: of raw guesses, and of refined ones.
_SAME_GUESS, _SAME_DIRECTION = 1e-2, 1e-5
# Relative error of a singular value from the matrix times its transpose, in double precision.
_HALF_OF_DIGITS = 1e-7
# A vector's largest entry stands above the error of an entry by this factor, or it is all error.
_ABOVE_ERRORS = 30.0 * tolerances.ZERO


def sparse_directions(
    factor: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    space: Float[Tensor, "rank unknown"],
    generator: torch.Generator,
) -> Float[Tensor, "found rank"]:
    """Coordinates a where ``factor @ a`` has far more zeros than rank - 1, from one round.

    Args:
        factor: R, float64, shape (entries, rank).
        errors: Size of the error of R's entries in each column, shape (rank,).
        space: Orthonormal basis of the space where a lies but for errors, shape (rank, unknown):
            the fewer dimensions, the fewer zeros have to be guessed right.
        generator: Source of the guesses.

    Returns:
        Unit vectors, each a direction once, those with most zeros first; their sign is arbitrary.
    """
    rank, unknown = space.shape
    rows = rows_above_errors(factor, errors)
    if unknown == 1:
        if not len(rows):
            # Every entry of the sample is zero: its ReLUs are all closed.
            return space.T
        return torch.cat([_refined(rows, errors, space.T), space.T])
    if rows.shape[0] < 2 * rank:
        return factor.new_zeros(0, rank)
    order = torch.randperm(rows.shape[0], generator=generator).to(rows.device)
    screen = rows[order[:_SCREENED]]
    affordable = _ENTRIES // (len(rows) + rank * rank)
    batch = max(_FEWEST_GUESSES, min(_MOST_GUESSES, affordable))
    directions = _guessed(rows @ space, batch, generator) @ space.T
    zeros = _zeros(screen, errors, directions).sum(dim=1)
    enough = _enough_zeros(*screen.shape)
    # The larger a direction's error, the more passes for zero: keep the best of each size of error.
    sizes = (directions * errors).norm(dim=1).log10().floor()
    best = zeros.sort(descending=True, stable=True).indices
    best = best[zeros[best] > enough]
    sizes = sizes[best]
    chosen = directions[:0]
    for size in sizes.unique():
        alike = directions[best[sizes == size][:_COMPARED]]
        chosen = torch.cat([chosen, _distinct(alike, screen, errors, _SAME_GUESS)[:_KEPT]])
    if not len(chosen):
        return factor.new_zeros(0, rank)
    return single_directions(rows, errors, chosen)


def rows_above_errors(
    factor: Float[Tensor, "entries rank"], errors: Float[Tensor, " rank"]
) -> Float[Tensor, "some rank"]:
    """The rows of R that are not all error: entries that are zero in every vector tell nothing.

    Args:
        factor: R, float64, shape (entries, rank).
        errors: Size of the error of R's entries in each column, shape (rank,).
    """
    return factor[(factor / errors).norm(dim=1) > tolerances.ZERO * len(errors) ** 0.5]


def single_directions(
    rows: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    directions: Float[Tensor, "directions rank"],
) -> Float[Tensor, "single rank"]:
    """Directions fitted to all of their zeros, where these are many and no other has them.

    Args:
        rows: R, float64, shape (entries, rank).
        errors: Size of the error of R's entries in each column, shape (rank,).
        directions: Near such directions, shape (directions, rank).

    Returns:
        Unit vectors, each direction once, those with most zeros first.
    """
    refined = _refined(rows, errors, directions)
    zeros = _zeros(rows, errors, refined)
    single = have_no_other(rows, errors, zeros) & (zeros.sum(dim=1) > _enough_zeros(*rows.shape))
    return _distinct(refined[single], rows, errors, _SAME_DIRECTION)


def _enough_zeros(entries: int, rank: int) -> int:
    """Zeros that a mixture does not have: they are those it was made from, and hardly any more."""
    return min(rank - 1, entries - 1) + max(3, rank // 4, entries // 50)


def have_no_other(
    rows: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    zeros: Bool[Tensor, "directions entries"],
) -> Bool[Tensor, " directions"]:
    """Whether at most one direction has these zeros.

    Two very sparse samples have many zeros in common, which all their mixtures have.

    Args:
        rows: R, float64, shape (entries, rank).
        errors: Size of the error of R's entries in each column, shape (rank,).
        zeros: Which entries are zero.
    """
    rank = rows.shape[1]
    if rank == 1:
        return torch.ones_like(zeros[:, 0])
    # In these coordinates every entry has an error of 1, so singular values of errors are known.
    scaled = rows / errors
    gram = torch.einsum("dn,ni,nj->dij", zeros.to(rows.dtype), scaled, scaled)
    sizes = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    loudest = tolerances.NOT_ERROR * (zeros.sum(dim=1).sqrt() + rank**0.5)
    # Squares lose half of the digits.
    single: Tensor = sizes[:, 1] > torch.maximum(loudest, _HALF_OF_DIGITS * sizes[:, -1])
    return single


def _guessed(
    rows: Float[Tensor, "entries unknown"], number: int, generator: torch.Generator
) -> Float[Tensor, "guesses unknown"]:
    """Unit vectors orthogonal to so many rows each that nothing else is.

    A random order of the rows gives many guesses. They have its first rows in common, to which the
    space orthogonal is computed once, and take turns with the others.
    """
    entries, unknown = rows.shape
    shared = (unknown - 1) // 2
    own = unknown - 1 - shared
    turns = min(_TURNS, (entries - shared) // own)
    orders = torch.rand(-(-number // turns), entries, generator=generator)
    orders = orders.topk(shared + turns * own, dim=1).indices.to(rows.device)
    scaled = torch.nn.functional.normalize(rows, dim=1)
    spaces = torch.linalg.qr(scaled[orders[:, :shared]].mT, mode="complete").Q[..., shared:]
    others = scaled[orders[:, shared:]] @ spaces
    solved = _orthogonal(others.reshape(-1, own, own + 1), generator)
    spread = solved.reshape(len(orders), turns, own + 1) @ spaces.mT
    directions: Tensor = spread.flatten(0, 1)
    finite: Tensor = directions[torch.isfinite(directions).all(dim=1)]
    return finite


def _orthogonal(
    rows: Float[Tensor, "guesses less rank"], generator: torch.Generator
) -> Float[Tensor, "guesses rank"]:
    """Unit vectors orthogonal to rank - 1 rows each, not finite where there are several."""
    guesses, _, rank = rows.shape
    extra = torch.randn(guesses, 1, rank, generator=generator, dtype=rows.dtype).to(rows.device)
    right = rows.new_zeros(guesses, rank, 1)
    right[:, -1] = 1.0
    solved, failed = torch.linalg.solve_ex(torch.cat([rows, extra], dim=1), right)
    solved = torch.nn.functional.normalize(solved[..., 0], dim=1)
    return torch.where(failed[:, None] == 0, solved, torch.nan)


def _zeros(
    rows: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    directions: Float[Tensor, "directions rank"],
) -> Tensor:
    """Which entries of each vector are zero within their error; bool (directions, entries)."""
    noise = (directions * errors).norm(dim=1, keepdim=True)
    sizes = (directions @ rows.T).abs_()
    # Where errors outweigh the vector itself, everything would pass for zero.
    above: Tensor = sizes.amax(dim=1, keepdim=True) > _ABOVE_ERRORS * noise
    zeros: Tensor = above & (sizes <= tolerances.ZERO * noise)
    return zeros


def _refined(
    rows: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    directions: Float[Tensor, "directions rank"],
) -> Float[Tensor, "directions rank"]:
    """Directions fitted to all of their zeros instead of rank - 1."""
    for _ in range(_REFINEMENTS):
        zeros = _zeros(rows, errors, directions).to(rows.dtype)
        gram = torch.einsum("dn,ni,nj->dij", zeros, rows, rows)
        directions = torch.linalg.eigh(gram).eigenvectors[..., 0]
    return directions


def _distinct(
    directions: Float[Tensor, "directions rank"],
    rows: Float[Tensor, "entries rank"],
    errors: Float[Tensor, " rank"],
    tolerance: float,
) -> Float[Tensor, "distinct rank"]:
    """Each direction once, those with most zeros first."""
    if not len(directions):
        return directions
    zeros = _zeros(rows, errors, directions).sum(dim=1)
    directions = directions[zeros.sort(descending=True, stable=True).indices]
    images = torch.nn.functional.normalize(directions @ rows.T, dim=1)
    same = (images @ images.T).abs() > 1.0 - tolerance
    first = same.int().argmax(dim=1)
    return directions[first == torch.arange(len(directions), device=first.device)]
