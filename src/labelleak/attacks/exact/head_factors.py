"""Factors of the head's gradient, which is a sum of one rank-one matrix per sample.

With q = (p - y) * weight of y, the gradient of weight and bias side by side is

    G = [dW, db] = 1/D * sum_k q_k [e_k, 1]^T = U S V^T ,

where D is the divisor of the loss: the batch size for a plain mean. Every q_k lies in the column
space, and every [e_k, 1] in the row space: [e_k, 1] = V a_k.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.logit_gradient import logit_gradients
from labelleak.attacks.exact.low_rank import LowRank, decompose, decomposition_seconds
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation


@dataclass(frozen=True)
class HeadFactors(LowRank):
    """Factors of the head's gradient G, shape (classes, columns); all float64.

    Columns are the features, and the bias where its gradient is known.

    Attributes:
        epsilon: Machine epsilon of the client's arithmetic, the error of 1 - p.
        matrix: G, shape (classes, columns).
        layer: [W, b], or W alone where G has no column for the bias; shape (classes, columns).
        offset: The bias where `layer` lacks it, else zero; shape (classes,).
        weights: Weight of each class in the loss, shape (classes,).
        affine: Whether G has a column for the bias, so that the last entry of V a is 1.
    """

    epsilon: float
    matrix: Float[Tensor, "classes columns"]
    layer: Float[Tensor, "classes columns"]
    offset: Float[Tensor, " classes"]
    weights: Float[Tensor, " classes"]
    affine: bool

    @cached_property
    def head(self) -> Float[Tensor, "classes rank"]:
        """``layer @ V``: logits are ``head @ a + offset``."""
        return self.layer @ self.right

    @cached_property
    def origin(self) -> Float[Tensor, " rank"]:
        """The shortest a with last entry 1 in V a; zero without a bias."""
        if not self.affine:
            return torch.zeros_like(self.values)
        origin: Tensor = self.right[-1] / self.right[-1].square().sum()
        return origin

    @cached_property
    def directions(self) -> Float[Tensor, "rank unknowns"]:
        """Orthonormal steps of a that keep the last entry of V a."""
        if not self.affine:
            return torch.eye(self.rank).to(self.values)
        basis, _ = torch.linalg.qr(self.right[-1][:, None], mode="complete")
        directions: Tensor = basis[:, 1:].contiguous()
        return directions

    @property
    def unknowns(self) -> int:
        """Number of unknowns of one sample."""
        return self.rank - 1 if self.affine else self.rank

    @property
    def spare_equations(self) -> int:
        """Number of equations less number of unknowns, of one sample with a label."""
        return self.matrix.shape[0] - 1 - self.rank - self.unknowns

    def logits(self, points: Float[Tensor, "points rank"]) -> Float[Tensor, "points classes"]:
        """Logits of the embeddings with coordinates a."""
        return points @ self.head.T + self.offset

    def logit_gradients(
        self, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, "points classes"]:
        """The q of samples with these coordinates and labels."""
        return logit_gradients(self.logits(points), labels, self.weights)

    def inverse_weights(
        self, points: Float[Tensor, "points rank"], inside: Float[Tensor, "points rank"]
    ) -> Float[Tensor, " points"]:
        """D over how often a sample is in the batch; near zero for most other points.

        Let q and e be in the column and row space of G. Then taking ``q [e, 1]^T / D`` from G
        lowers its rank by one exactly if ``(U^T q)^T S^-1 a = D`` (Wedderburn 1934).

        Args:
            points: Coordinates a.
            inside: The part of each q in the column space, ``U^T q``.
        """
        return (inside * (points / self.values)).sum(dim=1)

    def on_bias(self, points: Float[Tensor, "points rank"]) -> Float[Tensor, "points rank"]:
        """Scale points so that the last entry of V a is 1; unchanged without a bias."""
        return points / (points @ self.right[-1])[:, None] if self.affine else points


def factorize(
    observation: Observation,
    rank: int | None,
    generator: torch.Generator,
    *,
    seconds: float = math.inf,
) -> HeadFactors:
    """Factorize the observed gradient of the head.

    Args:
        observation: What the server sees.
        rank: Upper bound on the rank, such as the batch size, or None.
        generator: Source of randomness.
        seconds: About as long as that may take.

    Returns:
        The factors, cut at the noise or at the bound, whichever is lower.

    Raises:
        MissingKnowledge: The rank is as high as it can be, so that it tells no samples apart, or it
            is above the bound, or the gradient is too large for that time.
    """
    head, gradient = observation.head, observation.gradient
    layer, matrix = head.weight.double(), gradient.weight.double()
    offset = layer.new_zeros(head.classes)
    affine = gradient.bias is not None and head.bias is not None
    if affine:
        assert gradient.bias is not None
        assert head.bias is not None
        matrix = torch.cat([matrix, gradient.bias.double()[:, None]], dim=1)
        layer = torch.cat([layer, head.bias.double()[:, None]], dim=1)
    elif head.bias is not None:
        offset = head.bias.double()
    # The columns sum to zero, so the rank is below the number of classes.
    full = min(matrix.shape[0] - 1, matrix.shape[1])
    most = rank if rank is not None and rank < full else None
    if (cost := decomposition_seconds(matrix.shape, most)) > seconds:
        raise MissingKnowledge(
            f"exact restoration needs more time here: to decompose a gradient of {head.classes} "
            f"classes and {head.features} features once takes about {cost:.0f} of the "
            f"{seconds:.0f} seconds there are for it (raise time_limit)"
        )
    found = decompose(matrix, most, generator)
    values = found.values
    if rank is not None and rank < full:
        beyond = found.noise * matrix.numel() ** 0.5 / float(matrix.norm())
        if beyond > tolerances.UNEXPLAINED:
            raise MissingKnowledge(
                "exact restoration needs a gradient without noise, and the right batch size: "
                f"{rank} samples leave {beyond:.1e} of this gradient unexplained, whatever they are"
            )
    noise = _noise(found, matrix.shape, gradient.rounding, rank)
    loud = noise * tolerances.RANK_MARGIN * sum(math.sqrt(side) for side in matrix.shape)
    size = int((values[:full] > loud).sum())
    if rank is not None:
        size = min(size, rank)
    crowded = size >= full if rank is None else rank > full
    if size == 0 or crowded:
        most = min(full - 1 if rank is None else full, head.features)
        raise MissingKnowledge(
            f"exact restoration needs a batch of at most {most} samples here (fewer than classes, "
            "and no more than features), and a gradient without noise: the rank of this one tells "
            "no samples apart"
        )
    return HeadFactors(
        left=found.left[:, :size].contiguous(),
        values=values[:size],
        right=found.right[:, :size].contiguous(),
        noise=noise,
        epsilon=max(torch.finfo(head.weight.dtype).eps, tolerances.ARITHMETIC),
        matrix=matrix,
        layer=layer,
        offset=offset,
        weights=observation.loss.weights(head.classes, offset),
        affine=affine,
    )


def deflate(
    factors: HeadFactors,
    inputs: Float[Tensor, "samples columns"],
    contributions: Float[Tensor, "samples classes"],
) -> HeadFactors:
    """Factors of the gradient minus some of its samples.

    Args:
        factors: Factors of the whole gradient.
        inputs: [e, 1] of these samples.
        contributions: q / D of each.

    Returns:
        Factors of the rest. Its rank is that of the whole minus the number of samples, or lower
        where the rest drowns in the errors of these samples; at least 1.
    """
    matrix = factors.matrix - contributions.T @ inputs
    # The rest stays in the row space.
    taken = contributions.T @ (inputs @ factors.right)
    core = factors.left * factors.values - taken
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    size = factors.rank - len(inputs)
    error = float(values[size]) if size < len(values) else 0.0
    size = max(1, int((values[:size] > tolerances.DEFLATION_MARGIN * error).sum()))
    return replace(
        factors,
        matrix=matrix,
        left=left[:, :size].contiguous(),
        values=values[:size],
        right=factors.right @ right[:size].T,
        noise=max(factors.noise, error / sum(math.sqrt(side) for side in matrix.shape)),
    )


def _noise(found: LowRank, shape: torch.Size, rounding: float, rank: int | None) -> float:
    """Size of the error of one entry.

    If the number of samples is known, further singular values consist of errors and show their
    size. Otherwise only the number format bounds it.
    """
    least = tolerances.DECOMPOSITION * float(found.values.max()) / math.sqrt(max(shape))
    free = (shape[0] - 1, shape[1])
    if rank is None or rank >= min(free):
        return max(rounding / 4, least)
    entries = (free[0] - rank) * (free[1] - rank)
    return max(found.noise * math.sqrt(shape[0] * shape[1] / entries), least)
