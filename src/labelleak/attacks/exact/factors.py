"""The head's gradient as a sum of one rank-one matrix per sample, and its factors.

With q = (p - y) * weight of y, the gradient of weight and bias side by side is

    G = [dW, db] = 1/D * sum_k q_k [e_k, 1]^T = U S V^T ,

where D is the batch size (what the loss divides by). Every q_k lies in the column space, and every
[e_k, 1] in the row space: [e_k, 1] = V a_k.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation

# Relative error of the factors themselves, computed in double precision.
_FINEST = 1e-13
# The fit to a gradient in double precision comes no nearer than this.
_ARITHMETIC = 1e-12
# A singular value this far above the largest one that noise makes belongs to a sample.
_CLEAR = 2.0
# What the batch's number of samples leaves of the gradient, relative: rounding in single precision
# leaves 1e-8 to 1e-5.
_NOISY = 1e-4


@dataclass(frozen=True)
class Factors:
    """The factors of a gradient, cut at its rank r; all float64.

    Attributes:
        epsilon: Machine epsilon of the client's arithmetic: the error of one less a probability.
        matrix: G, shape (classes, columns); columns = features + 1, or features where there is no
            bias gradient.
        left: U, shape (classes, rank).
        values: S, shape (rank,), descending.
        right: V, shape (columns, rank).
        noise: Size of the error of one entry of G.
        layer: [W, b], or W alone where G has no column for the bias; shape (classes, columns).
        head: ``layer @ V``, so that logits are ``head @ a + offset``; shape (classes, rank).
        offset: The bias where `layer` lacks it, else zero; shape (classes,).
        origin: A point of the row space with last coordinate 1, shape (rank,); zeros without bias.
        directions: Orthonormal steps that keep the last coordinate, shape (rank, unknowns).
        weights: Weight of each class in the loss, shape (classes,).
    """

    epsilon: float
    matrix: Float[Tensor, "classes columns"]
    left: Float[Tensor, "classes rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "columns rank"]
    noise: float
    layer: Float[Tensor, "classes columns"]
    head: Float[Tensor, "classes rank"]
    offset: Float[Tensor, " classes"]
    origin: Float[Tensor, " rank"]
    directions: Float[Tensor, "rank unknowns"]
    weights: Float[Tensor, " classes"]

    @property
    def rank(self) -> int:
        """Number of linearly independent samples that the gradient shows."""
        return self.values.numel()

    @property
    def affine(self) -> bool:
        """Whether embeddings carry a last coordinate of 1, from the bias."""
        return self.directions.shape[1] < self.rank

    @property
    def spare_equations(self) -> int:
        """By how many the equations of one sample and label outnumber its unknowns."""
        return self.left.shape[0] - 1 - self.rank - self.directions.shape[1]

    def logits(self, points: Float[Tensor, "points rank"]) -> Float[Tensor, "points classes"]:
        """Logits of the embeddings at some coordinates a."""
        return points @ self.head.T + self.offset

    def errors(
        self, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, "points classes"]:
        """Q of samples with these coordinates and labels."""
        return errors(self.logits(points), labels, self.weights)

    def inverse_weights(
        self, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " points"]:
        """D for a sample of the batch, zero in general for any other (Wedderburn 1934).

        Taking ``q [e, 1]^T / D`` from G lowers its rank by one exactly if
        ``(U^T q)^T S^-1 a = D``, for q and e in its column and row space. Of a sample that is in
        the batch more than once it is D over that number.
        """
        inside = self.errors(points, labels) @ self.left
        return (inside * (points / self.values)).sum(dim=1)


def errors(
    logits: Float[Tensor, "points classes"],
    labels: Int[Tensor, " points"],
    weights: Float[Tensor, " classes"],
) -> Float[Tensor, "points classes"]:
    """``(p - y) * weight[y]``: the derivative of the loss by the logits.

    The entry of the label is minus the sum of the others: 1 - p would cancel where the network is
    sure of itself.
    """
    result = torch.softmax(logits, dim=1)
    result.scatter_(1, labels[:, None], 0.0)
    result.scatter_(1, labels[:, None], -result.sum(dim=1, keepdim=True))
    return result * weights[labels][:, None]


def deflate(
    factors: Factors,
    embeddings: Float[Tensor, "atoms columns"],
    contributions: Float[Tensor, "atoms classes"],
) -> Factors:
    """Factors of what is left of the gradient once some of its samples are taken from it.

    Args:
        factors: Of the whole gradient.
        embeddings: [e, 1] of these samples.
        contributions: q / D of each.

    Returns:
        Factors of the rest, of a rank that much lower, or lower still where the rest is weak
        beside the errors that taking the samples out leaves.
    """
    matrix = factors.matrix - contributions.T @ embeddings
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    size = factors.rank - len(embeddings)
    error = float(values[size]) if size < len(values) else 0.0
    size = max(1, int((values[:size] > 3.0 * error).sum()))
    noise = max(factors.noise, error / sum(math.sqrt(side) for side in matrix.shape))
    return _assemble(
        factors.epsilon,
        matrix,
        (left[:, :size], values[:size], right[:size].T),
        noise,
        factors.layer,
        factors.offset,
        factors.weights,
        affine=factors.affine,
    )


def factorise(observation: Observation, rank: int | None) -> Factors:
    """Factors of the observed gradient.

    Args:
        observation: What the server sees.
        rank: Upper bound on the rank, the batch size say; None for none.

    Returns:
        The factors, cut at the noise or at the bound, whichever is less.

    Raises:
        MissingKnowledge: The rank is not below what G can have, so that it hides no structure, or
            it is above the bound.
    """
    head, gradient = observation.head, observation.gradient
    weight = head.weight.double()
    matrix = gradient.weight.double()
    offset = weight.new_zeros(head.classes)
    with_bias = gradient.bias is not None and head.bias is not None
    if with_bias:
        assert gradient.bias is not None
        assert head.bias is not None
        matrix = torch.cat([matrix, gradient.bias.double()[:, None]], dim=1)
        weight = torch.cat([weight, head.bias.double()[:, None]], dim=1)
    elif head.bias is not None:
        offset = head.bias.double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # Its columns sum to zero, so that the rank is below the number of classes.
    full = min(matrix.shape[0] - 1, matrix.shape[1])
    if rank is not None and rank < full:
        beyond = float(values[rank:full].norm() / values.norm())
        if beyond > _NOISY:
            raise MissingKnowledge(
                "exact restoration needs a gradient without noise, and the right batch size: "
                f"{rank} samples leave {beyond:.1e} of this gradient unexplained, whatever they are"
            )
    noise = _noise(values, matrix.shape, gradient.rounding, rank)
    loud = noise * _CLEAR * (math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1]))
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
    weights = observation.loss.weights(observation.classes, offset)
    parts = (left[:, :size], values[:size], right[:size].T)
    epsilon = max(torch.finfo(head.weight.dtype).eps, _ARITHMETIC)
    return _assemble(epsilon, matrix, parts, noise, weight, offset, weights, affine=with_bias)


def _assemble(
    epsilon: float,
    matrix: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    noise: float,
    layer: Tensor,
    offset: Tensor,
    weights: Tensor,
    *,
    affine: bool,
) -> Factors:
    left, values, right = (part.contiguous() for part in parts)
    if affine:
        origin, directions = _affine(right[-1])
    else:
        origin, directions = torch.zeros_like(values), torch.eye(len(values)).to(values)
    return Factors(
        epsilon,
        matrix,
        left,
        values,
        right,
        noise,
        layer,
        layer @ right,
        offset,
        origin,
        directions,
        weights,
    )


def _noise(
    values: Float[Tensor, " values"], shape: torch.Size, rounding: float, rank: int | None
) -> float:
    """Size of the error of one entry.

    Behind the last sample's singular value there is nothing but errors: where the number of samples
    is known they show how large those are, which the number format only bounds.
    """
    least = _FINEST * float(values.max()) / math.sqrt(max(shape))
    free = (shape[0] - 1, shape[1])
    if rank is None or rank >= min(free):
        return max(rounding / 4, least)
    entries = (free[0] - rank) * (free[1] - rank)
    return max(float(values[rank : min(free)].norm()) / math.sqrt(entries), least)


def _affine(
    last: Float[Tensor, " rank"],
) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank unknowns"]]:
    """The affine space ``last @ a = 1``: its point nearest to zero, and an orthonormal basis."""
    basis, _ = torch.linalg.qr(last[:, None], mode="complete")
    return last / last.square().sum(), basis[:, 1:].contiguous()
