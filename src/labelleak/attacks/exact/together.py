"""Samples that are found already, made more exact by each other while others are missing."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.atoms import ROUNDING, Atoms, off_label
from labelleak.attacks.exact.factors import Factors

_STEPS = 6
_COUPLING = 0.2
# Above so many unknowns, samples times their coordinates, the equations cost more than they help.
_MOST_UNKNOWNS = 3000


def coupling_errors(
    factors: Factors, atoms: Atoms
) -> tuple[Float[Tensor, "atoms atoms"], Float[Tensor, "atoms atoms"]]:
    """How far two samples are from biorthogonal, and how far errors let them be.

    Of samples of one batch, ``(U^T q_j)^T S^-1 a_k`` over the inverse weight of j is 1 for j = k
    and 0 otherwise: neither is part of what the other is made of.
    """
    points = atoms.embeddings @ factors.right
    inside = factors.errors(points, atoms.labels) @ factors.left
    scaled_points, scaled_errors = points / factors.values, inside / factors.values
    inverse = atoms.inverse_weights[:, None]
    coupling = inside @ scaled_points.T / inverse
    rounding = ROUNDING * (
        inside.norm(dim=1)[:, None] * scaled_points.norm(dim=1)
        + scaled_errors.norm(dim=1)[:, None] * points.norm(dim=1)
    )
    noise = factors.noise * scaled_errors.norm(dim=1)[:, None] * scaled_points.norm(dim=1)
    return coupling, (rounding + noise) / inverse.abs()


def settle(factors: Factors, atoms: Atoms) -> Atoms:
    """Fit atoms to the column space and to biorthogonality, each equation by its own errors.

    Args:
        factors: Of the whole gradient.
        atoms: Some of its samples.

    Returns:
        The same samples; their inverse weights are those they had.
    """
    if not 0 < factors.directions.shape[1] * len(atoms) <= _MOST_UNKNOWNS:
        return atoms
    start = atoms.embeddings @ factors.right
    if factors.affine:
        start = start / (start @ factors.right[-1])[:, None]
    _, allowed = coupling_errors(factors, atoms)
    directions = off_label(factors.logits(start), atoms.labels)
    noise = factors.noise * ((directions @ factors.left) / factors.values).norm(dim=1) + 1e-6
    weight = 1.0 / (allowed + 1e-6) / atoms.inverse_weights[:, None]
    points = start
    cost, outside, coupled = _residuals(factors, atoms, points, noise, weight)
    damping = 1e-6
    for _ in range(_STEPS):
        gram, right = _normal_equations(factors, atoms, points, noise, weight, outside, coupled)
        sizes = gram.diagonal().sqrt().clamp_min(1e-300)
        gram, right = gram / sizes / sizes[:, None], right / sizes
        for _ in range(5):
            ridge = damping * torch.eye(len(right)).to(right)
            change = (torch.linalg.solve(gram + ridge, right) / sizes).view(len(atoms), -1)
            trial = points - change @ factors.directions.T
            there = _residuals(factors, atoms, trial, noise, weight)
            if there[0] < cost:
                break
            damping *= 30.0
        else:
            break
        gained = 1.0 - there[0] / cost
        points, damping = trial, max(damping * 0.1, 1e-14)
        cost, outside, coupled = there
        if gained < 1e-2:
            break
    return Atoms(points @ factors.right.T, atoms.labels, atoms.inverse_weights)


def _residuals(
    factors: Factors,
    atoms: Atoms,
    points: Float[Tensor, "atoms rank"],
    noise: Float[Tensor, " atoms"],
    weight: Float[Tensor, "atoms atoms"],
) -> tuple[float, Float[Tensor, "atoms classes"], Float[Tensor, "atoms atoms"]]:
    """Sum of squares, and what it is of: q outside of the column space, and the couplings."""
    directions = off_label(factors.logits(points), atoms.labels)
    outside = (directions - (directions @ factors.left) @ factors.left.T) / noise[:, None]
    inside = factors.errors(points, atoms.labels) @ factors.left
    coupling = inside @ (points / factors.values).T - torch.diag(atoms.inverse_weights)
    coupled = coupling * weight
    return float(outside.square().sum() + coupled.square().sum()), outside, coupled


def _normal_equations(
    factors: Factors,
    atoms: Atoms,
    points: Float[Tensor, "atoms rank"],
    noise: Float[Tensor, " atoms"],
    weight: Float[Tensor, "atoms atoms"],
    outside: Float[Tensor, "atoms classes"],
    coupled: Float[Tensor, "atoms atoms"],
) -> tuple[Float[Tensor, "moves moves"], Float[Tensor, " moves"]]:
    """J^T J and J^T r over the moves of all atoms, in closed form."""
    moves, number = factors.directions, len(atoms)
    unknowns = moves.shape[1]
    slopes = factors.head @ moves
    logits = factors.logits(points)
    # Each q outside of the column space depends on its own atom alone.
    shares = off_label(logits, atoms.labels).scatter(1, atoms.labels[:, None], 0.0)
    own = shares[:, :, None] * (slopes - (shares @ slopes)[:, None, :])
    own = own - torch.einsum("cr,krm->kcm", factors.left, factors.left.T @ own)
    own = own / noise[:, None, None]
    # Coupling (j, k) depends on atom j by its q and on atom k by its coordinates.
    p = torch.softmax(logits, dim=1) * factors.weights[atoms.labels][:, None]
    tilt = torch.softmax(logits, dim=1) @ slopes
    by_errors = factors.left.T @ (p[:, :, None] * (slopes - tilt[:, None, :]))
    inside = factors.errors(points, atoms.labels) @ factors.left
    first = torch.einsum("kr,jrm->jkm", points / factors.values, by_errors) * weight[:, :, None]
    second = ((inside / factors.values) @ moves)[:, None, :] * weight[:, :, None]
    crossed = first[..., None] * second[:, :, None, :]
    gram = crossed.permute(0, 2, 1, 3) + crossed.permute(1, 3, 0, 2)
    rows = torch.arange(number, device=points.device)
    gram[rows, :, rows] += own.transpose(1, 2) @ own + first.transpose(1, 2) @ first
    gram[rows, :, rows] += torch.einsum("jkm,jkn->kmn", second, second)
    right = torch.einsum("jkm,jk->jm", first, coupled) + torch.einsum("jkm,jk->km", second, coupled)
    right = right + torch.einsum("kcm,kc->km", own, outside)
    return gram.reshape(number * unknowns, number * unknowns), right.flatten()


def compatible(factors: Factors, known: int, every: Atoms, most: int) -> Int[Tensor, " kept"]:
    """Which atoms go together: the first `known` ones, and others as long as they fit to those."""
    coupling, allowed = coupling_errors(factors, every)
    excess = coupling.abs() - allowed
    clashes = torch.maximum(excess, excess.T) > _COUPLING
    kept = list(range(known))
    for index in range(known, len(every)):
        if len(kept) < most and not bool(clashes[index, kept].any()):
            kept.append(index)
    return torch.tensor(kept, device=every.labels.device, dtype=torch.int64)
