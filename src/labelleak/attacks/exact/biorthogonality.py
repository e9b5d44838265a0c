"""Samples of one batch are biorthogonal: which of them go together, and what that tells of each.

Of samples of one batch, ``(U^T q_j)^T S^-1 a_k`` over the inverse weight of j, the coupling of j
and k, is 1 for j = k and 0 otherwise: neither is part of what the other is made of.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.descent import direction_slopes
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.levenberg_marquardt import Schedule, minimize
from labelleak.attacks.exact.logit_gradient import logit_directions
from labelleak.attacks.exact.samples import Samples

_STEPS = 12
_SCHEDULE = Schedule(damping=1e-6, shrink=0.1, grow=1e3, ridge=1e-30, gain=1e-2, patience=3)
# Above so many unknowns, samples times their coordinates, the equations cost more than they help.
_MOST_UNKNOWNS = 3000


def compatible(factors: HeadFactors, known: int, every: Samples, most: int) -> Int[Tensor, " kept"]:
    """Which samples go together: the first `known` ones, and others as long as they fit to those.

    Args:
        factors: Of the whole gradient.
        known: Number of samples that stay in any case.
        every: Those, and then further ones, those to be preferred first.
        most: Largest number to keep.

    Returns:
        Their indices, ascending.
    """
    coupling, allowed = _couplings(factors, every)
    excess = coupling.abs() - allowed
    clashes = torch.maximum(excess, excess.T) > tolerances.COUPLING
    kept = list(range(known))
    for index in range(known, len(every)):
        if len(kept) < most and not bool(clashes[index, kept].any()):
            kept.append(index)
    return torch.tensor(kept, device=every.labels.device, dtype=torch.int64)


def refine_together(factors: HeadFactors, samples: Samples) -> Samples:
    """Fit samples to the column space and to biorthogonality, each equation by its own errors.

    Works while others are still missing, unlike a fit to the whole gradient.

    Args:
        factors: Of the whole gradient.
        samples: Some of its samples.

    Returns:
        The same samples; their inverse weights are those they had.
    """
    if not 0 < factors.unknowns * len(samples) <= _MOST_UNKNOWNS:
        return samples
    start = factors.on_bias(samples.inputs @ factors.right)
    _, allowed = _couplings(factors, samples)
    directions = logit_directions(factors.logits(start), samples.labels)
    noise = factors.noise * ((directions @ factors.left) / factors.values).norm(dim=1)
    problem = PartialFit(
        factors,
        samples,
        outside_errors=noise + tolerances.LEAST_ERROR,
        coupling_weights=1.0
        / (allowed + tolerances.LEAST_ERROR)
        / samples.inverse_weights[:, None],
    )
    points, _ = minimize(problem, start[None], _SCHEDULE, steps=_STEPS)
    return Samples(points[0] @ factors.right.T, samples.labels, samples.inverse_weights)


@dataclass(frozen=True)
class PartialFit:
    """A single problem: all samples' q outside of the column space, and all couplings.

    Attributes:
        factors: Of the whole gradient.
        samples: Some of its samples: their labels and inverse weights.
        outside_errors: What each sample's part outside is divided by, shape (samples,).
        coupling_weights: What each pair's coupling is multiplied by, shape (samples, samples).
    """

    factors: HeadFactors
    samples: Samples
    outside_errors: Float[Tensor, " samples"]
    coupling_weights: Float[Tensor, "samples samples"]

    def evaluate(self, points: Float[Tensor, "1 samples rank"]) -> tuple[Tensor, ...]:
        """Sum of squares, and what it is of: the q outside, and the couplings."""
        factors, samples, [own] = self.factors, self.samples, points
        directions = logit_directions(factors.logits(own), samples.labels)
        outside = factors.outside(directions) / self.outside_errors[:, None]
        inside = factors.logit_gradients(own, samples.labels) @ factors.left
        coupling = inside @ (own / factors.values).T - torch.diag(samples.inverse_weights)
        coupled = coupling * self.coupling_weights
        cost = outside.square().sum() + coupled.square().sum()
        return cost[None], outside[None], coupled[None]

    def normal_equations(
        self, points: Float[Tensor, "1 samples rank"], evaluated: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "1 moves moves"], Float[Tensor, "1 moves"]]:
        """J^T J and J^T r over the moves of all samples, in closed form."""
        factors, [points] = self.factors, points
        _, [outside], [coupled] = evaluated
        labels = self.samples.labels
        logits = factors.logits(points)
        # Each q outside of the column space depends on its own sample alone.
        own = direction_slopes(factors, logit_directions(logits, labels), labels)
        own = own / self.outside_errors[:, None, None]
        # Coupling (j, k) depends on sample j by its q and on sample k by its coordinates.
        slopes = factors.head @ factors.directions
        p = torch.softmax(logits, dim=1)
        weighted = (p * factors.weights[labels][:, None])[:, :, None]
        by_errors = factors.left.T @ (weighted * (slopes - (p @ slopes)[:, None, :]))
        inside = factors.logit_gradients(points, labels) @ factors.left
        weight = self.coupling_weights[:, :, None]
        first = torch.einsum("kr,jrm->jkm", points / factors.values, by_errors) * weight
        second = ((inside / factors.values) @ factors.directions)[:, None, :] * weight
        crossed = first[..., None] * second[:, :, None, :]
        gram = crossed.permute(0, 2, 1, 3) + crossed.permute(1, 3, 0, 2)
        rows = torch.arange(len(points), device=points.device)
        gram[rows, :, rows] += own.transpose(1, 2) @ own + first.transpose(1, 2) @ first
        gram[rows, :, rows] += torch.einsum("jkm,jkn->kmn", second, second)
        right = torch.einsum("jkm,jk->jm", first, coupled)
        right = right + torch.einsum("jkm,jk->km", second, coupled)
        right = right + torch.einsum("kcm,kc->km", own, outside)
        return gram.reshape(1, right.numel(), right.numel()), right.view(1, -1)

    def move(
        self, points: Float[Tensor, "1 samples rank"], steps: Float[Tensor, "1 moves"]
    ) -> Float[Tensor, "1 samples rank"]:
        """The points after a step."""
        return points + steps.view(*points.shape[:2], -1) @ self.factors.directions.T

    def pick(self, chosen: Tensor) -> "PartialFit":
        """The problem itself: it is the only one."""
        return self


def _couplings(
    factors: HeadFactors, samples: Samples
) -> tuple[Float[Tensor, "samples samples"], Float[Tensor, "samples samples"]]:
    """All couplings, and how far errors let them be from 0 and 1."""
    points = samples.inputs @ factors.right
    inside = factors.logit_gradients(points, samples.labels) @ factors.left
    dual_points, dual_inside = points / factors.values, inside / factors.values
    inverse = samples.inverse_weights[:, None]
    coupling = inside @ dual_points.T / inverse
    rounding = tolerances.CLIENT_ROUNDING * (
        inside.norm(dim=1)[:, None] * dual_points.norm(dim=1)
        + dual_inside.norm(dim=1)[:, None] * points.norm(dim=1)
    )
    noise = factors.noise * dual_inside.norm(dim=1)[:, None] * dual_points.norm(dim=1)
    return coupling, (rounding + noise) / inverse.abs()
