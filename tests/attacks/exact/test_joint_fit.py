"""All samples fitted to the gradient at once, for a hypothesis of their labels."""

import pytest
import torch
from exact_batches import DENSE, FEW_CLASSES, FLOAT, endless, extended

from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.joint_fit import JointFits, column_scale, fit_jointly
from synthetic import rng


def fitted(made, hypotheses):
    factors = factorize(made.observe(), 8, rng())
    points = extended(made) @ factors.right
    shares = torch.full(hypotheses.shape, 1.0 / 8.0, dtype=FLOAT)
    start = points + 0.01 * torch.randn(points.shape, generator=rng(), dtype=FLOAT) @ (
        factors.directions @ factors.directions.T
    )
    starts = start.repeat(len(hypotheses), 1, 1)
    return factors, *fit_jointly(factors, starts, hypotheses, shares, steps=60, clock=endless())


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_it_tells_true_labels_from_wrong_ones(made):
    hypotheses = made.labels.repeat(9, 1)
    for k in range(8):
        hypotheses[k + 1, k] = (made.labels[k] + 1) % len(made.weight)
    factors, points, cost = fitted(made, hypotheses)
    assert float(cost[0]) < 1e-18
    # The cost against its definition.
    q = factors.logit_gradients(points[0], made.labels) / 8.0
    rebuilt = q.T @ (points[0] / factors.values)
    assert float((rebuilt - factors.left).square().sum()) < 1e-16
    assert (cost[1:] > 1e-3).all()


def test_it_follows_its_own_derivatives():
    """The normal equations in closed form against differences of the residuals."""
    factors = factorize(DENSE.observe(), 8, rng())
    labels = torch.stack([DENSE.labels, DENSE.labels.flip(0)])
    shares = torch.linspace(0.1, 0.2, 16, dtype=FLOAT).view(2, 8)
    problems = JointFits(factors, labels, shares, column_scale(factors))
    points = (extended(DENSE) @ factors.right).repeat(2, 1, 1)
    points = points + 0.01 * factors.directions.sum(dim=1)
    steps = 1e-6 * torch.eye(8 * 7, dtype=FLOAT)

    def residuals(step):
        return problems.evaluate(problems.move(points, step.expand(2, -1)))[2].flatten(1)

    jacobian = torch.stack([(residuals(s) - residuals(-s)) / 2e-6 for s in steps], dim=2)
    evaluated = problems.evaluate(points)
    gram, gradient = problems.normal_equations(points, evaluated)
    expected = jacobian.transpose(1, 2) @ jacobian
    assert torch.allclose(gram, expected, rtol=1e-5, atol=1e-6 * float(gram.max()))
    expected = (jacobian.transpose(1, 2) @ evaluated[2].flatten(1)[:, :, None])[..., 0]
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
