"""Samples that are found already, made more exact by each other while others are missing."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.atoms import ROUNDING, Atoms, off_label
from labelleak.attacks.exact.factors import Factors

_STEPS = 6
_COUPLING = 0.2


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
    moves, number = factors.directions, len(atoms)
    start = atoms.embeddings @ factors.right
    if factors.affine:
        start = start / (start @ factors.right[-1])[:, None]
    _, allowed = coupling_errors(factors, atoms)
    directions = off_label(factors.logits(start), atoms.labels)
    noise = factors.noise * ((directions @ factors.left) / factors.values).norm(dim=1) + 1e-6
    weight = 1.0 / (allowed + 1e-6)
    unit = torch.eye(number).to(start)

    def residuals(change: Tensor) -> Tensor:
        points = start + change.view(number, -1) @ moves.T
        logits = factors.logits(points)
        directions = off_label(logits, atoms.labels)
        inside = directions @ factors.left
        outside = (directions - inside @ factors.left.T) / noise[:, None]
        others = torch.logsumexp(logits.scatter(1, atoms.labels[:, None], -torch.inf), dim=1)
        every = torch.logsumexp(logits, dim=1)
        size = torch.exp(others - every) * factors.weights[atoms.labels]
        q = inside * size[:, None]
        coupling = q @ (points / factors.values).T / atoms.inverse_weights[:, None]
        return torch.cat([outside.flatten(), ((coupling - unit) * weight).flatten()])

    change = torch.zeros(number * moves.shape[1]).to(start)
    here = residuals(change)
    damping = 1e-6
    for _ in range(_STEPS):
        jacobian = torch.func.jacfwd(residuals)(change)
        sizes = jacobian.norm(dim=0).clamp_min(1e-300)
        scaled = jacobian / sizes
        gram, right = scaled.T @ scaled, scaled.T @ here
        for _ in range(5):
            ridge = damping * torch.eye(len(right)).to(right)
            trial = change - torch.linalg.solve(gram + ridge, right) / sizes
            there = residuals(trial)
            if bool(there.square().sum() < here.square().sum()):
                break
            damping *= 30.0
        else:
            break
        gained = 1.0 - float(there.square().sum() / here.square().sum())
        change, here, damping = trial, there, max(damping * 0.1, 1e-14)
        if gained < 1e-2:
            break
    points = start + change.view(number, -1) @ moves.T
    return Atoms(points @ factors.right.T, atoms.labels, atoms.inverse_weights)


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
