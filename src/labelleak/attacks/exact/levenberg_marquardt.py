"""Levenberg-Marquardt on many independent least-squares problems at once."""

from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact.clock import Clock

# Steps between two removals of settled problems from the batch: a removal copies the rest.
_COMPACTION = 5
# Damping relative to the diagonal of J^T J: at first, and its bounds.
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-3, 1e-14, 1e10
# Factors on the damping after a step that lowers the sum of squares, and after one that does not.
_SHRINK, _GROW = 0.2, 5.0
# A problem has settled after six steps in a row that each lower its sum of squares by under 1 %.
_PROGRESS, _PATIENCE = 1e-2, 6


@runtime_checkable
class Problems(Protocol):
    """Independent least-squares problems of one shape; row i of every tensor is problem i."""

    def evaluate(self, points: Tensor) -> tuple[Tensor, ...]:
        """Sum of squares of each problem at its point, then what `normal_equations` needs."""
        ...

    def normal_equations(
        self, points: Tensor, evaluated: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "problems unknowns unknowns"], Float[Tensor, "problems unknowns"]]:
        """J^T J and J^T r, with r the residuals and J their Jacobian."""
        ...

    def move(self, points: Tensor, steps: Float[Tensor, "problems unknowns"]) -> Tensor:
        """The points after a step in the unknowns."""
        ...

    def pick(self, chosen: Tensor) -> Self:
        """Some of the problems, by mask."""
        ...


def minimize(
    problems: Problems,
    points: Tensor,
    *,
    steps: int,
    enough: float = 0.0,
    clock: Clock | None = None,
) -> tuple[Tensor, Float[Tensor, " problems"]]:
    """Minimize every problem's sum of squares by Levenberg-Marquardt (Marquardt 1963).

    Args:
        problems: The problems.
        points: Starts, shape (problems, ...).
        steps: Largest number of steps.
        enough: Sum of squares below which a problem is solved.
        clock: Time limit, or None; at least one step is taken.

    Returns:
        The points reached, and their sums of squares, shape (problems,).
    """
    evaluated = problems.evaluate(points)
    reached, costs = points.clone(), evaluated[0].clone()
    active = torch.arange(len(points), device=points.device)
    damping = torch.full_like(costs, _DAMPING)
    stalled = torch.zeros_like(active)
    equations = None
    for step in range(steps):
        if equations is None:
            equations = problems.normal_equations(points, evaluated)
        trial = problems.move(points, _damped_step(*equations, damping))
        there = problems.evaluate(trial)
        cost = evaluated[0]
        better = there[0] < cost
        progress = better & (1.0 - there[0] / cost > _PROGRESS)
        if better.any():
            equations = None
        points = _where(better, trial, points)
        evaluated = tuple(_where(better, *both) for both in zip(there, evaluated, strict=True))
        damping = damping * torch.where(better, _SHRINK, _GROW).to(damping)
        damping = damping.clamp(_LEAST_DAMPING, _MOST_DAMPING)
        stalled = torch.where(progress, 0, stalled + 1)
        done = (evaluated[0] < enough) | (stalled >= _PATIENCE)
        if step == steps - 1 or (clock is not None and clock.is_over):
            done = torch.ones_like(done)
        if done.all() or (step % _COMPACTION == _COMPACTION - 1 and done.any()):
            reached[active[done]], costs[active[done]] = points[done], evaluated[0][done]
            if done.all():
                break
            keep = ~done
            problems, points, active = problems.pick(keep), points[keep], active[keep]
            evaluated = tuple(part[keep] for part in evaluated)
            damping, stalled = damping[keep], stalled[keep]
            equations = None
    return reached, costs


def _damped_step(
    gram: Float[Tensor, "problems unknowns unknowns"],
    gradient: Float[Tensor, "problems unknowns"],
    damping: Float[Tensor, " problems"],
) -> Float[Tensor, "problems unknowns"]:
    """Solve for the step, with every unknown scaled by its own diagonal entry."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # Unknowns without any effect have a zero here.
    sizes = (diagonal + 1e-30 * diagonal.amax(dim=1, keepdim=True) + 1e-300).sqrt()
    system = gram / sizes[:, :, None] / sizes[:, None, :]
    system = system + torch.diag_embed(damping[:, None].expand_as(sizes))
    # A singular system gives infinite steps, which are undone.
    step, _ = torch.linalg.solve_ex(system, -(gradient / sizes)[:, :, None])
    damped: Tensor = step[..., 0] / sizes
    return damped


def _where(chosen: Bool[Tensor, " problems"], new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where chosen, else of `old`."""
    return torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), new, old)
