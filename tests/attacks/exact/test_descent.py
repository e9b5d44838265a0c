"""Descents of single samples."""

import torch
from exact_batches import DENSE, FLOAT, endless, extended

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.descent import ColumnSpaceFits, descend, misfit
from labelleak.attacks.exact.head_factors import factorize
from synthetic import rng

FACTORS = factorize(DENSE.observe(), 8, rng())
POINTS = extended(DENSE) @ FACTORS.right
STARTS = POINTS + 0.2 * torch.randn(8, 7, generator=rng(), dtype=FLOAT) @ FACTORS.directions.T


def test_it_returns_to_the_samples():
    assert (misfit(FACTORS, POINTS, DENSE.labels) < 1e-9).all()
    reached, left = descend(FACTORS, STARTS, DENSE.labels, enough=1e-10, clock=endless())
    assert (left < 1e-9).all()
    assert torch.allclose(reached, POINTS, atol=1e-6)


def test_few_points_at_a_time_reach_the_same():
    """Where there are many classes, derivatives of all starts do not fit into memory."""
    parts = descend(FACTORS, STARTS, DENSE.labels, enough=1e-10, clock=endless(), entries=1)
    assert torch.allclose(parts[0], POINTS, atol=1e-6)
    late = descend(FACTORS, STARTS, DENSE.labels, enough=1e-10, clock=Clock(0.0), entries=1)
    assert torch.isfinite(late[1][0])
    assert torch.isinf(late[1][1:]).all()


def test_it_follows_its_own_derivatives():
    """The normal equations against differences of the residuals."""
    problems = ColumnSpaceFits(FACTORS, DENSE.labels)
    steps = 1e-6 * torch.eye(7, dtype=FLOAT)

    def residuals(step):
        return problems.evaluate(problems.move(STARTS, step.expand(8, -1)))[2]

    jacobian = torch.stack([(residuals(s) - residuals(-s)) / 2e-6 for s in steps], dim=2)
    evaluated = problems.evaluate(STARTS)
    gram, gradient = problems.normal_equations(STARTS, evaluated)
    expected = jacobian.transpose(1, 2) @ jacobian
    assert torch.allclose(gram, expected, rtol=1e-5, atol=1e-6 * float(gram.max()))
    expected = (jacobian.transpose(1, 2) @ evaluated[2][:, :, None])[..., 0]
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
