"""Joint fit of all embeddings to the head's gradient, for given labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.levenberg_marquardt import minimize


def fit_jointly(
    factors: HeadFactors,
    points: Float[Tensor, "hypotheses samples rank"],
    labels: Int[Tensor, "hypotheses samples"],
    shares: Float[Tensor, "hypotheses samples"],
    *,
    steps: int,
    clock: Clock,
    scale: Float[Tensor, " rank"] | None = None,
) -> tuple[Float[Tensor, "hypotheses samples rank"], Float[Tensor, " hypotheses"]]:
    """Solve ``sum_k share_k q_k (a_k / S)^T = U`` by least squares, for every hypothesis.

    Columns are divided by S, so that weak samples count as much as strong ones, and by
    ``1 + (noise / S)^2``, so that columns of noise count little.

    Args:
        factors: Factors of the head's gradient.
        points: Coordinates to start from.
        labels: The hypotheses.
        shares: How often each sample is in the batch, over D.
        steps: Largest number of steps.
        clock: Time limit.
        scale: Factor on each column; None for `column_scale`.

    Returns:
        Coordinates, and the squared norms of what they leave of U.
    """
    scale = column_scale(factors) if scale is None else scale
    problems = JointFits(factors, labels, shares, scale)
    # A single sample with a bias has no unknowns.
    steps = steps if factors.unknowns else 0
    return minimize(problems, points, steps=steps, clock=clock)


def column_scale(factors: HeadFactors) -> Float[Tensor, " rank"]:
    """S / (S^2 + noise^2), with the noise of a whole column."""
    loud = factors.noise * factors.matrix.shape[0] ** 0.5
    scale: Tensor = factors.values / (factors.values.square() + loud**2)
    return scale


@dataclass(frozen=True)
class JointFits:
    """One problem for each hypothesis: what all samples together leave of the gradient.

    Attributes:
        factors: Factors of the head's gradient.
        labels: The hypotheses.
        shares: How often each sample is in the batch, over D.
        scale: Factor on each column.
    """

    factors: HeadFactors
    labels: Int[Tensor, "hypotheses samples"]
    shares: Float[Tensor, "hypotheses samples"]
    scale: Float[Tensor, " rank"]

    def evaluate(self, points: Float[Tensor, "hypotheses samples rank"]) -> tuple[Tensor, ...]:
        """Squared norms of what is left, the shares times q, and what is left."""
        factors, flat = self.factors, points.flatten(0, 1)
        q = factors.logit_gradients(flat, self.labels.flatten())
        q = q.view(*self.labels.shape, -1) * self.shares[:, :, None]
        target = factors.left * (factors.values * self.scale)
        left_over = torch.einsum("hkc,hkr->hcr", q, points * self.scale) - target
        return left_over.square().sum(dim=(1, 2)), q, left_over

    def normal_equations(
        self, points: Float[Tensor, "hypotheses samples rank"], evaluated: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "hypotheses moves moves"], Float[Tensor, "hypotheses moves"]]:
        """J^T J and J^T r over the moves of all samples of every hypothesis."""
        _, q, left_over = evaluated
        slope, scaled = self._slopes(points), points * self.scale
        moves = self.scale[:, None] * self.factors.directions
        # The derivative by sample k is slope_k a_k^T + q_k move^T; products in closed form.
        by_class = slope.permute(0, 2, 1, 3).flatten(2)
        gram = by_class.transpose(1, 2) @ by_class
        hypotheses, samples, _, unknowns = slope.shape
        gram = gram.view(hypotheses, samples, unknowns, samples, unknowns)
        gram = gram * (scaled @ scaled.transpose(1, 2))[:, :, None, :, None]
        crossed = torch.einsum("hkcm,hlc->hkml", slope, q)
        mixed = crossed[:, :, :, :, None] * (scaled @ moves)[:, :, None, None, :]
        gram = gram + mixed + mixed.permute(0, 3, 4, 1, 2)
        both = (q @ q.transpose(1, 2))[:, :, None, :, None] * (moves.T @ moves)[:, None, :]
        gram = (gram + both).reshape(hypotheses, samples * unknowns, samples * unknowns)
        pulled = torch.einsum("hcr,hkr->hkc", left_over, scaled)
        gradient = torch.einsum("hkcm,hkc->hkm", slope, pulled)
        gradient = gradient + torch.einsum("hcr,hkc->hkr", left_over, q) @ moves
        return gram, gradient.flatten(1)

    def _slopes(
        self, points: Float[Tensor, "hypotheses samples rank"]
    ) -> Float[Tensor, "hypotheses samples classes moves"]:
        """Derivatives of every share times q by the moves."""
        factors = self.factors
        slopes = factors.head @ factors.directions
        p = torch.softmax(factors.logits(points.flatten(0, 1)), dim=1)
        weight = self.shares.flatten() * factors.weights[self.labels.flatten()]
        p_weighted = weight[:, None, None] * p[:, :, None]
        slope: Tensor = p_weighted * (slopes - (p @ slopes)[:, None, :])
        return slope.view(*self.labels.shape, *slope.shape[1:])

    def move(
        self,
        points: Float[Tensor, "hypotheses samples rank"],
        steps: Float[Tensor, "hypotheses moves"],
    ) -> Float[Tensor, "hypotheses samples rank"]:
        """The points after their moves."""
        moves = self.factors.directions
        return points + steps.view(*points.shape[:2], -1) @ moves.T

    def pick(self, chosen: Tensor) -> "JointFits":
        """Some of the hypotheses."""
        return JointFits(self.factors, self.labels[chosen], self.shares[chosen], self.scale)
