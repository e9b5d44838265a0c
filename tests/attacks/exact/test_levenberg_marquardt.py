"""The batched Levenberg-Marquardt, against SciPy's and on problems known to be hard."""

from dataclasses import dataclass

import pytest
import scipy.optimize
import torch
from exact_batches import FLOAT

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.levenberg_marquardt import minimize
from synthetic import rng

TIMES = torch.linspace(0.0, 2.0, 12, dtype=FLOAT)


@dataclass(frozen=True)
class Decays:
    """``a exp(-b t)`` fitted to rows of measurements."""

    measured: torch.Tensor

    def evaluate(self, points):
        residuals = points[:, :1] * torch.exp(-points[:, 1:] * TIMES) - self.measured
        return residuals.square().sum(dim=1), residuals

    def normal_equations(self, points, evaluated):
        shape = torch.exp(-points[:, 1:] * TIMES)
        jacobian = torch.stack([shape, -TIMES * points[:, :1] * shape], dim=2)
        gradient = (jacobian.transpose(1, 2) @ evaluated[1][:, :, None])[..., 0]
        return jacobian.transpose(1, 2) @ jacobian, gradient

    def move(self, points, steps):
        return points + steps

    def pick(self, chosen):
        return Decays(self.measured[chosen])


def noisy_decays(number):
    true = 0.5 + 2.0 * torch.rand(number, 2, generator=rng(), dtype=FLOAT)
    measured = true[:, :1] * torch.exp(-true[:, 1:] * TIMES)
    return measured + 0.05 * torch.randn(number, 12, generator=rng(1), dtype=FLOAT)


def test_every_problem_reaches_scipys_minimum():
    """Some settle early and are taken out of the batch: none is mixed up with another."""
    measured = noisy_decays(40)
    starts = torch.tensor([[1.0, 1.0]], dtype=FLOAT).repeat(40, 1)
    starts[::3] = torch.tensor([0.1, 4.0], dtype=FLOAT)
    points, costs = minimize(Decays(measured), starts, steps=200)
    for row, start, point, cost in zip(measured, starts, points, costs, strict=True):
        theirs = scipy.optimize.least_squares(
            lambda x, row=row: x[0] * torch.exp(-x[1] * TIMES).numpy() - row.numpy(),
            start.numpy(),
            xtol=1e-12,
        )
        assert float(cost) == pytest.approx(2.0 * theirs.cost, rel=1e-6)
        assert point.tolist() == pytest.approx(theirs.x.tolist(), rel=1e-4)
    assert torch.equal(costs, Decays(measured).evaluate(points)[0])


def test_points_stop_where_they_have_arrived_and_never_go_up():
    measured = noisy_decays(6)
    starts = torch.ones(6, 2, dtype=FLOAT)
    before = Decays(measured).evaluate(starts)[0]
    untouched, costs = minimize(Decays(measured), starts, steps=0)
    assert torch.equal(untouched, starts)
    assert torch.equal(costs, before)
    enough = float(before.max()) + 1.0
    _, arrived = minimize(Decays(measured), starts, steps=50, enough=enough)
    # One step is taken before anyone looks.
    assert (arrived <= before).all()
    assert (arrived > minimize(Decays(measured), starts, steps=50)[1]).all()


def test_the_clock_ends_it():
    measured, starts = noisy_decays(6), torch.ones(6, 2, dtype=FLOAT)
    one_step = minimize(Decays(measured), starts, steps=1)
    stopped = minimize(Decays(measured), starts, steps=50, clock=Clock(0.0))
    assert torch.equal(stopped[0], one_step[0])


def test_a_point_does_not_drift_along_a_direction_that_means_nothing():
    """Without amplitude the rate has no derivative at all."""
    measured = torch.zeros(1, 12, dtype=FLOAT)
    starts = torch.tensor([[1.0, 3.0]], dtype=FLOAT)
    points, costs = minimize(Decays(measured), starts, steps=60)
    assert float(costs) < 1e-20
    assert torch.isfinite(points).all()
