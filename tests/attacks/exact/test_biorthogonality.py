"""Samples of one batch are biorthogonal."""

import torch
from exact_batches import DENSE, FLOAT, endless, extended

from labelleak.attacks.exact.biorthogonality import PartialFit, compatible, refine_together
from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.samples import Samples
from synthetic import rng

FACTORS = factorize(DENSE.observe(), 8, rng())


def some(number):
    inverse = torch.full((number,), 8.0, dtype=FLOAT)
    return Samples(extended(DENSE)[:number], DENSE.labels[:number], inverse)


def test_samples_go_together_and_mixtures_do_not():
    assert compatible(FACTORS, 0, some(8), 8).tolist() == list(range(8))
    assert compatible(FACTORS, 0, some(8), 3).tolist() == [0, 1, 2]
    mixed = some(8)
    mixed.inputs[5] = 0.5 * (mixed.inputs[0] + mixed.inputs[5])
    assert compatible(FACTORS, 5, mixed, 8).tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_refining_makes_samples_more_exact_while_others_are_missing():
    slips = 1e-3 * torch.randn(5, 7, generator=rng(), dtype=FLOAT) @ FACTORS.directions.T
    blurred = some(5)
    blurred.inputs.add_(slips @ FACTORS.right.T)
    refined = refine_together(FACTORS, blurred, endless())
    assert torch.allclose(refined.inputs, extended(DENSE)[:5], atol=1e-9)
    assert torch.equal(refined.labels, blurred.labels)
    assert torch.equal(refined.inverse_weights, blurred.inverse_weights)


def test_samples_that_run_away_stay_where_they_were():
    stray = some(5)
    # Nothing on the bias: no scale makes an input of it.
    last = FACTORS.right[-1]
    flat = FACTORS.directions[:, 0] - last * (FACTORS.directions[:, 0] @ last) / last.square().sum()
    stray.inputs[0] = FACTORS.right @ flat
    refined = refine_together(FACTORS, stray, endless())
    assert bool(torch.isfinite(refined.inputs).all())
    assert torch.equal(refined.inputs[0], stray.inputs[0])


def test_it_follows_its_own_derivatives():
    """The normal equations in closed form against differences of the residuals."""
    noise = torch.linspace(0.1, 0.5, 5, dtype=FLOAT)
    weight = torch.rand(5, 5, generator=rng(), dtype=FLOAT)
    problem = PartialFit(FACTORS, some(5), noise, weight)
    points = (some(5).inputs @ FACTORS.right + 0.01 * FACTORS.directions.sum(dim=1))[None]

    def residuals(step):
        _, outside, coupled = problem.evaluate(problem.move(points, step[None]))
        return torch.cat([outside.flatten(), coupled.flatten()])

    steps = 1e-6 * torch.eye(5 * 7, dtype=FLOAT)
    jacobian = torch.stack([(residuals(s) - residuals(-s)) / 2e-6 for s in steps], dim=1)
    here = residuals(torch.zeros(len(steps), dtype=FLOAT))
    evaluated = problem.evaluate(points)
    assert torch.allclose(evaluated[0], here.square().sum())
    [gram], [right] = problem.normal_equations(points, evaluated)
    assert torch.allclose(gram, jacobian.T @ jacobian, rtol=1e-5, atol=1e-6 * float(gram.max()))
    assert torch.allclose(right, jacobian.T @ here, rtol=1e-5, atol=1e-6 * float(right.max()))
