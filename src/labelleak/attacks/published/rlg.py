"""RLG: present classes are those that a hyperplane in the gradient's row space cuts off."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import null_space
from scipy.optimize import OptimizeResult, linprog
from torch import Tensor

from labelleak.attacks.cost import check_decomposition, check_room
from labelleak.attacks.published.signs import restore_set
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.numerics import numerical_rank
from labelleak.observation import Observation
from labelleak.restoration import Restoration

_MARGIN = 1e-6
# A row of an orthonormal basis that is no longer than this is the rounding of a row of zeros.
_ROUNDING = 1e-12
# What SciPy calls the status of a program that a limit has ended.
_LIMIT_REACHED = 1


@register(
    "rlg",
    title="RLG (Revealing Labels from Gradients)",
    needs=(Need.WEIGHT,),
    gives=(Gives.SET,),
    assumes="the gradient's rank below the number of features and of classes less one",
    reference="Dang et al., NeurIPS 2021 (arXiv:2111.00556), Algorithm 1",
)
def rlg(
    observation: Observation,
    *,
    strict: bool = False,
    time_limit: float | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """The classes that one hyperplane separates from all others.

    The gradient is ``Q^T E`` with one row per sample in Q, negative at the sample's label only. Its
    row space over the classes is known from the singular value decomposition; class i is in the
    batch if some combination r of its basis is negative at i and non-negative everywhere else: one
    linear program per class (SciPy HiGHS), after cheap sufficient tests. The rank S is the
    numerical rank of the gradient, never the true batch size.

    The paper asks for S < min(classes, features), and so does this. But the columns of a gradient
    sum to zero over the classes, so that S is at most classes - 1, and at that rank every class is
    separable: the answer is "all classes", whatever the batch. The published figures hold such
    answers; `strict`, which ``restore(attack="auto")`` sets, refuses to give them.

    Args:
        observation: Needs the weight gradient only.
        strict: Whether to refuse a rank of classes - 1, at which the answer says nothing.
        time_limit: Seconds; a gradient whose decomposition or whose programs outlast them is
            refused. None for none.
        now: Reads the clock, in seconds. For tests, which bring their own clock.

    Returns:
        A set; counts where the set leaves one possibility only.

    Raises:
        MissingKnowledge: The rank is not below min(classes, features), or, if strict, not below
            min(classes - 1, features). Or more classes than there is memory or time for.
    """
    start = now()
    check_room(observation, "rlg")
    if time_limit is not None:
        check_decomposition(observation, "rlg", time_limit)
    gradient = observation.gradient.weight
    left, values, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
    rank = numerical_rank(values, gradient.shape, observation.gradient.rounding)
    if rank >= min(gradient.shape):
        raise MissingKnowledge(
            f"RLG needs a gradient of rank below {min(gradient.shape)} (the smaller of classes and "
            f"features), and this one has full rank: the batch is too large or noise was added"
        )
    if strict and rank >= observation.classes - 1:
        raise MissingKnowledge(
            f"RLG finds every one of {observation.classes} classes in any gradient of rank {rank}: "
            "the batch is too large for it to tell anything"
        )
    limit = math.inf if time_limit is None else time_limit

    def seconds_left() -> float:
        return start + limit - now()

    return restore_set(observation, separable(left[:, :rank], seconds_left))


def separable(
    basis: Float[Tensor, "classes rank"],
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Bool[Tensor, " classes"]:
    """For each class, whether a hyperplane through the origin cuts its row off from all others.

    Two tests by projection decide most classes at once, one for either answer, and a linear
    program each of the others.

    Args:
        basis: Orthonormal columns, shape (classes, rank), float64.
        seconds_left: How long the linear programs may take from now on.

    Returns:
        Bool, shape (classes,): some r has ``basis[i] @ r < 0`` and ``basis[j] @ r >= 0`` for all
        other j.

    Raises:
        MissingKnowledge: They take longer.
    """
    everyone = basis @ basis.sum(dim=0)
    candidates = _candidates(basis, everyone)
    columns = basis @ basis[candidates].T
    found = torch.zeros(len(basis), dtype=torch.bool, device=basis.device)
    found[candidates] = _cut_off_by_regression(everyone, columns, candidates)
    undecided = torch.zeros_like(found)
    undecided[candidates] = ~found[candidates] & ~_held_by_others(everyone, columns, candidates)
    # A positive factor per row changes no sign. With unit rows one margin fits all.
    # The rounding of a row of zeros must not be scaled up to a unit.
    lengths = basis.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > _ROUNDING, basis / lengths, 0.0).cpu().numpy()
    classes, rank = rows.shape
    if not undecided.any():
        return found
    if rank <= classes - rank:
        cut_off = partial(_cut_off_by_direction, rows)
    else:
        cut_off = partial(_cut_off_by_pattern, null_space(rows.T))
    for index in undecided.nonzero()[:, 0].tolist():
        answer = cut_off(index, seconds_left())
        if answer is None:
            raise MissingKnowledge(
                f"RLG solves a linear program for each class that its tests leave open, here "
                f"{int(undecided.sum())} of {classes}, and the time limit is over before the last "
                "(give a longer one, or use 'gradinversion')"
            )
        found[index] = answer
    return found


def _candidates(
    basis: Float[Tensor, "classes rank"], everyone: Float[Tensor, " classes"]
) -> Int[Tensor, " candidates"]:
    """Classes that a hyperplane may cut off: about twice the rank where rows sum to zero.

    Then the ones are nearly in the orthogonal complement, their own lift u is 1 but for d, and
    `_held_by_others` compares ``(1 - P_ii) / u_i`` with ``-P_ji / u_j`` for the projector P, which
    is at most ``sqrt(P_ii (1 - P_ii)) / (1 - d)``. So a class is held if P_ii is below 1/2 by more
    than d; the sum of all P_ii is the rank.
    """
    off = float(everyone.abs().amax())
    return (basis.square().sum(dim=1) >= 0.5 - 2 * off - 2 * _MARGIN).nonzero()[:, 0]


def _cut_off_by_regression(
    everyone: Float[Tensor, " classes"],
    columns: Float[Tensor, "classes candidates"],
    candidates: Int[Tensor, " candidates"],
) -> Bool[Tensor, " candidates"]:
    """Which classes a least-squares hyperplane already cuts off: sufficient, and all at once.

    The target is minus the class's own indicator, with the others lifted to the positive side by
    more or less.
    """
    classes, number = columns.shape
    found = torch.zeros(number, dtype=torch.bool, device=columns.device)
    each = torch.arange(number, device=columns.device)
    for lift in (0.0, 1.0 / classes, 1.0):
        sides = lift * everyone[:, None] - columns
        own = sides[candidates, each]
        sides[candidates, each] = 0.0
        found |= (own < -_MARGIN) & (sides.amin(dim=0) >= 0.0)
    return found


def _held_by_others(
    everyone: Float[Tensor, " classes"],
    columns: Float[Tensor, "classes candidates"],
    candidates: Int[Tensor, " candidates"],
) -> Bool[Tensor, " candidates"]:
    """Which classes no hyperplane cuts off, by projection: sufficient, and all at once.

    By Farkas' lemma no vector of the space is negative at i only exactly if some vector of the
    orthogonal complement is. A gradient's rows sum to zero over the classes, so the complement
    holds a positive vector, the ones; the smallest multiple of it that lifts all other entries of
    minus the projection of i's indicator must leave i negative.
    """
    positive = 1.0 - everyone
    if not (positive > _MARGIN).all():
        return torch.zeros_like(candidates, dtype=torch.bool)
    heights = -columns / positive[:, None]
    each = torch.arange(len(candidates), device=columns.device)
    own = heights[candidates, each] + 1.0 / positive[candidates]
    heights[candidates, each] = -torch.inf
    return own > heights.amax(dim=0) + _MARGIN


def _cut_off_by_direction(points: np.ndarray, index: int, seconds: float) -> bool | None:
    """The linear program over the direction r: as many unknowns as the rank; None if too slow."""
    solved = _solved(
        points[index],
        seconds,
        A_ub=-np.delete(points, index, axis=0),
        b_ub=np.zeros(len(points) - 1),
        bounds=(-1.0, 1.0),
    )
    return None if solved is None else bool(solved.status == 0 and solved.fun < -_MARGIN)


def _cut_off_by_pattern(complement: np.ndarray, index: int, seconds: float) -> bool | None:
    """The same question over the signs ``v = points @ r``: as many equations as the rank lacks.

    These v are the vectors orthogonal to the complement of the points' column space; asked for is
    one with ``v[index] = -1`` and no other negative entry.
    """
    solved = _solved(
        np.zeros(len(complement) - 1),
        seconds,
        A_eq=np.delete(complement, index, axis=0).T,
        b_eq=complement[index],
        bounds=(0.0, 1.0 / _MARGIN),
    )
    return None if solved is None else bool(solved.status == 0)


def _solved(costs: np.ndarray, seconds: float, **program: Any) -> OptimizeResult | None:
    """The solution of a linear program by HiGHS; None if it takes longer than so many seconds."""
    if seconds <= 0.0:
        return None
    options = {"time_limit": seconds} if seconds < math.inf else {}
    solved = linprog(costs, method="highs", options=options, **program)
    return None if solved.status == _LIMIT_REACHED else solved
