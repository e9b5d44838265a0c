"""The samples of a layer by its closed units, whatever its inputs are.

``d_k = (z_k > 0) * (W_head^T q_k)`` is zero where the ReLU of a unit is closed for sample k, which
half of them are before training. So the d are sparse directions of the column space, as the inputs
behind a ReLU are of the row space. Where as many are found as the rank shows, the inputs follow
from a linear system (SPEAR, Dimitrov et al., NeurIPS 2024).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.low_rank import LowRank
from labelleak.attacks.exact.sparsity import sparse_directions

# Rounds of guesses in a row that may find nothing new: at first, and once any is found. Of 16
# samples about one is guessed in a round, and the last is one of 16.
_PATIENCE_AT_FIRST, _PATIENCE = 12, 64
# One less the cosine of directions that are the same, as of sparse directions.
_SAME_DIRECTION = 1e-5


def inputs_by_open_units(
    factors: LowRank,
    head: Float[Tensor, "classes outputs"],
    generator: torch.Generator,
    clock: Clock,
) -> Float[Tensor, "samples rank"]:
    """Directions of the inputs of all samples, as coordinates a.

    Args:
        factors: Factors of the layer's gradient.
        head: Weight of the head.
        generator: Source of the guesses.
        clock: Time limit.

    Returns:
        As many as the rank, of any length; none where not all are found.
    """
    everything, errors = torch.eye(factors.rank).to(factors.values), factors.noise / factors.values
    known, fruitless = everything[:0], 0
    while len(known) < factors.rank and not clock.is_over:
        if fruitless >= (_PATIENCE if len(known) else _PATIENCE_AT_FIRST):
            break
        drawn = sparse_directions(factors.left, errors, everything, generator)
        every = torch.cat([known, drawn[come_from_head(factors, drawn, head)]])
        same = (every @ every.T).abs() > 1.0 - _SAME_DIRECTION
        every = every[~same.tril(diagonal=-1).any(dim=1)]
        fruitless = 0 if len(every) > len(known) else fruitless + 1
        known = every
    if len(known) != factors.rank:
        return everything[:0]
    inputs, failed = inputs_from_directions(factors, known)
    return everything[:0] if failed else inputs


def inputs_from_directions(
    factors: LowRank, directions: Float[Tensor, "rank rank"]
) -> tuple[Float[Tensor, "rank rank"], bool]:
    """Coordinates a of all inputs, of any length, and whether there are none.

    Args:
        factors: Factors of the layer's gradient.
        directions: Coordinates b of the gradients ``U b`` of all samples.
    """
    # U S V^T is the sum of all U b (V a)^T.
    inputs, failed = torch.linalg.solve_ex(directions.T, torch.diag(factors.values))
    return inputs, bool(failed)


def come_from_head(
    factors: LowRank,
    directions: Float[Tensor, "directions rank"],
    head: Float[Tensor, "classes outputs"],
) -> Bool[Tensor, " directions"]:
    """Which directions are gradients of logits where they are not zero.

    Args:
        factors: Factors of the layer's gradient.
        directions: Coordinates b of sparse directions ``U b``.
        head: Weight of the head.
    """
    errors = factors.noise * (directions / factors.values).norm(dim=1)
    outputs = directions @ factors.left.T
    # A unit that is hardly open may as well be closed and have an error.
    hardly = (tolerances.ZERO * errors).clamp_min(tolerances.DIRECTION)
    is_open = (outputs.abs() > hardly[:, None]).double()
    # Gradients of logits sum to zero.
    slopes = head - head.mean(dim=0)
    pulled = is_open[:, None, :] * slopes
    gram = pulled @ pulled.transpose(1, 2)
    logits = torch.linalg.pinv(gram, hermitian=True) @ (pulled @ outputs[:, :, None])
    left_over = (outputs * is_open - (pulled.transpose(1, 2) @ logits)[..., 0]).norm(dim=1)
    allowed = tolerances.ERROR_MARGIN * errors * len(factors.left) ** 0.5 + tolerances.DIRECTION
    come: Tensor = left_over <= allowed.clamp_max(tolerances.MOST_MISFIT)
    return come
