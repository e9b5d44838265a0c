"""The factors of a layer's gradient."""

import torch
from exact_batches import DENSE, FLOAT, extended

from labelleak.attacks.exact.head_factors import factorize
from synthetic import rng


def test_the_space_left_holds_the_other_samples_and_no_more():
    factors = factorize(DENSE.observe(), 8, rng())
    points = extended(DENSE) @ factors.right
    q = factors.logit_gradients(points, DENSE.labels)
    space = factors.space_left(q[:5] / 8.0)
    assert space.shape == (8, 3)
    assert torch.allclose(space.T @ space, torch.eye(3, dtype=FLOAT), atol=1e-12)
    assert torch.allclose(points[5:] @ space @ space.T, points[5:], atol=1e-8)
    assert factors.space_left(q[:0]).shape == (8, 8)


def test_a_sample_s_logit_gradient_has_no_part_outside():
    factors = factorize(DENSE.observe(), 8, rng())
    q = factors.logit_gradients(extended(DENSE) @ factors.right, DENSE.labels)
    assert factors.outside(q).norm() < 1e-9 * q.norm()
    other = torch.ones(1, 30, dtype=FLOAT)
    assert torch.allclose(factors.outside(other), other)
