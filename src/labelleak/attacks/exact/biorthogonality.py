"""Biorthogonality of the samples of one batch: selects compatible samples, and refines them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.certainty import couplings
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.descent import direction_slopes
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.levenberg_marquardt import minimize
from labelleak.attacks.exact.logit_gradient import logit_directions
from labelleak.attacks.exact.samples import Samples

_STEPS = 12
# With more unknowns, samples times coordinates, the equations cost more time than they save.
_MOST_UNKNOWNS = 2000
# The same for the entries of their derivatives, unknowns times classes: 512 MB.
_MOST_SLOPES = 2**26


def compatible(factors: HeadFactors, known: int, every: Samples, most: int) -> Int[Tensor, " kept"]:
    """Select samples that can be in one batch, greedily.

    Args:
        factors: Factors of the whole head gradient.
        known: Number of samples at the front that are kept in any case.
        every: All samples; of those behind the front, earlier ones are preferred.
        most: Largest number to keep.

    Returns:
        Indices of the samples kept, ascending.
    """
    coupling, allowed = _of_samples(factors, every)
    excess = coupling.abs() - allowed
    clashes = torch.maximum(excess, excess.T) > tolerances.COUPLING
    kept = list(range(known))
    for index in range(known, len(every)):
        if len(kept) < most and not bool(clashes[index, kept].any()):
            kept.append(index)
    return torch.tensor(kept, device=every.labels.device, dtype=torch.int64)


def refine_together(factors: HeadFactors, samples: Samples, clock: Clock) -> Samples:
    """Fit samples to the column space and to biorthogonality, each equation weighed by its error.

    Unlike a fit to the whole gradient, this works while other samples are missing.

    Args:
        factors: Factors of the whole head gradient.
        samples: Some of its samples.
        clock: Time limit.

    Returns:
        The same samples with more exact inputs, and inverse weights as before.
    """
    unknowns = factors.unknowns * len(samples)
    affordable = unknowns <= _MOST_UNKNOWNS and unknowns * factors.left.shape[0] <= _MOST_SLOPES
    if not unknowns or not affordable or clock.is_over:
        return samples
    found = samples.inputs @ factors.right
    start = factors.on_bias(found)
    _, allowed = _of_samples(factors, samples)
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
    [points], _ = minimize(problem, start[None], steps=_STEPS, clock=clock)
    # Whatever moves by more than its own length, or out of all numbers, is not the same any more.
    near = (points - found).norm(dim=1) <= found.norm(dim=1)
    inputs = torch.where(near[:, None], points @ factors.right.T, samples.inputs)
    return Samples(inputs, samples.labels, samples.inverse_weights)


@dataclass(frozen=True)
class PartialFit:
    """One least-squares problem: the q outside of the column space, and the couplings.

    Attributes:
        factors: Factors of the whole head gradient.
        samples: Some of its samples; only their labels and inverse weights are used.
        outside_errors: Divisor of each sample's part outside, shape (samples,).
        coupling_weights: Factor on the coupling of each pair, shape (samples, samples).
    """

    factors: HeadFactors
    samples: Samples
    outside_errors: Float[Tensor, " samples"]
    coupling_weights: Float[Tensor, "samples samples"]

    def evaluate(self, points: Float[Tensor, "1 samples rank"]) -> tuple[Tensor, ...]:
        """The sum of squares, the parts of q outside, and the couplings less their targets."""
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
        # The part of q outside depends on its own sample only.
        own = direction_slopes(factors, logit_directions(logits, labels), labels)
        own = own / self.outside_errors[:, None, None]
        # Coupling (j, k) depends on sample j through q and on sample k through its coordinates.
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
        """This problem, as there is only one."""
        return self


def _of_samples(
    factors: HeadFactors, samples: Samples
) -> tuple[Float[Tensor, "samples samples"], Float[Tensor, "samples samples"]]:
    """The couplings of all pairs, and their errors."""
    points = samples.inputs @ factors.right
    inside = factors.logit_gradients(points, samples.labels) @ factors.left
    return couplings(factors, points, inside / samples.inverse_weights[:, None])
