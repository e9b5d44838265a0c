"""All samples at once: embeddings for a hypothesis of the labels that rebuild the gradient."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.factors import Factors, errors


def fit(
    factors: Factors,
    points: Float[Tensor, "hypotheses samples rank"],
    labels: Int[Tensor, "hypotheses samples"],
    shares: Float[Tensor, "hypotheses samples"],
    *,
    steps: int,
    enough: float = 0.0,
    scale: Float[Tensor, " rank"] | None = None,
) -> tuple[Float[Tensor, "hypotheses samples rank"], Float[Tensor, " hypotheses"]]:
    """Levenberg-Marquardt on ``sum_k share_k q_k (a_k / S)^T = U``, for every hypothesis.

    Columns are divided by S, so that weak samples count as much as strong ones, and by
    ``1 + (noise / S)^2`` where noise is as strong as they are.

    Args:
        factors: Of the gradient.
        points: Coordinates to start from.
        labels: The hypotheses.
        shares: Share of each sample, its number over D.
        steps: Largest number of steps.
        enough: Cost at which a hypothesis has arrived.
        scale: Weight of each column, as `column_scale` has it unless given.

    Returns:
        Coordinates, and the cost: the squared norm of what is left of U.
    """
    hypotheses, samples, rank = points.shape
    moves, unknowns = factors.directions, factors.directions.shape[1]
    slopes = factors.head @ moves
    scale = column_scale(factors) if scale is None else scale
    steps_scaled = scale[:, None] * moves
    target = factors.left * (factors.values * scale)
    flat = labels.flatten()
    classes = target.shape[0]

    def rebuild(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = factors.logits(at.reshape(-1, rank))
        q = errors(logits, flat, factors.weights).view(hypotheses, samples, classes)
        q = q * shares[:, :, None]
        left_over = torch.einsum("hkc,hkr->hcr", q, at * scale) - target
        return logits, q, left_over

    damping = points.new_full((hypotheses,), 1e-3)
    logits, q, left_over = rebuild(points)
    cost = left_over.square().sum(dim=(1, 2))
    steady = torch.zeros(hypotheses, dtype=torch.int64, device=points.device)
    # One sample with a bias has no unknowns: its embedding is a quotient.
    for _ in range(steps if unknowns else 0):
        probabilities = torch.softmax(logits, dim=1)
        means = probabilities @ slopes
        weight = (shares.flatten() * factors.weights[flat])[:, None, None]
        slope = weight * probabilities[:, :, None] * (slopes - means[:, None, :])
        slope = slope.view(hypotheses, samples, classes, unknowns)
        # Derivative of sample k: slope_k a_k^T + q_k (move)^T; its products in closed form.
        scaled = points * scale
        by_class = slope.permute(0, 2, 1, 3).reshape(hypotheses, classes, samples * unknowns)
        gram = (by_class.transpose(1, 2) @ by_class).view(
            hypotheses, samples, unknowns, samples, unknowns
        )
        gram = gram * (scaled @ scaled.transpose(1, 2))[:, :, None, :, None]
        crossed = torch.einsum("hkcm,hlc->hkml", slope, q)
        onto = scaled @ steps_scaled
        mixed = crossed[:, :, :, :, None] * onto[:, :, None, None, :]
        gram = gram + mixed + mixed.permute(0, 3, 4, 1, 2)
        gram = gram + (
            (q @ q.transpose(1, 2))[:, :, None, :, None]
            * (steps_scaled.T @ steps_scaled)[None, None, :, None, :]
        )
        gram = gram.reshape(hypotheses, samples * unknowns, samples * unknowns)
        pulled = torch.einsum("hcr,hkr->hkc", left_over, scaled)
        gradient = torch.einsum("hkcm,hkc->hkm", slope, pulled)
        gradient = gradient + torch.einsum("hcr,hkc->hkr", left_over, q) @ steps_scaled
        diagonal = gram.diagonal(dim1=1, dim2=2)
        sizes = (diagonal + 1e-30 * diagonal.amax(dim=1, keepdim=True) + 1e-300).sqrt()
        system = gram / sizes[:, :, None] / sizes[:, None, :]
        system = system + torch.diag_embed((damping[:, None] + 1e-15).expand_as(sizes))
        right = -gradient.reshape(hypotheses, -1) / sizes
        move, _ = torch.linalg.solve_ex(system, right[:, :, None])
        move = (move[..., 0] / sizes).view(hypotheses, samples, unknowns)
        trial = points + move @ moves.T
        new_logits, new_q, new_left_over = rebuild(trial)
        new_cost = new_left_over.square().sum(dim=(1, 2))
        better = new_cost < cost
        gained = torch.where(better, 1.0 - new_cost / cost, 0.0)
        points = torch.where(better[:, None, None], trial, points)
        q = torch.where(better[:, None, None], new_q, q)
        left_over = torch.where(better[:, None, None], new_left_over, left_over)
        rows = better.repeat_interleave(samples)
        logits = torch.where(rows[:, None], new_logits, logits)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.2, damping * 4.0).clamp(1e-15, 1e10)
        steady = torch.where(gained > 1e-3, 0, steady + 1)
        if bool(((cost <= enough) | (steady >= 8)).all()):
            break
    return points, cost


def column_scale(factors: Factors) -> Float[Tensor, " rank"]:
    """S / (S^2 + noise^2), the noise that of a whole column."""
    loud = factors.noise * factors.matrix.shape[0] ** 0.5
    scale: Tensor = factors.values / (factors.values.square() + loud**2)
    return scale
