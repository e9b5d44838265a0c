"""The head's gradient and its factors."""

import torch
from exact_batches import DENSE, FLOAT, extended

from labelleak.attacks.exact.head_factors import deflate, factorize
from labelleak.attacks.exact.logit_gradient import logit_gradients
from synthetic import rng


def logit_gradients_of(made, weights):
    return logit_gradients(made.embeddings @ made.weight.T + made.bias, made.labels, weights)


def test_coordinates_hold_embeddings_and_logits():
    factors = factorize(DENSE.observe(), 8, rng())
    points = extended(DENSE) @ factors.right
    assert factors.rank == 8
    assert torch.allclose(points @ factors.right.T, extended(DENSE), atol=1e-9)
    assert torch.allclose(factors.logits(points), DENSE.embeddings @ DENSE.weight.T + DENSE.bias)
    assert torch.allclose(factors.origin @ factors.right[-1], torch.ones((), dtype=FLOAT))
    assert (factors.right[-1] @ factors.directions).abs().max() < 1e-12


def inverse_weights(factors, points, labels):
    return factors.inverse_weights(points, factors.logit_gradients(points, labels) @ factors.left)


def test_taking_a_sample_out_lowers_the_rank_and_nothing_else_does():
    """The inverse weight against the definition: the rank of what is left."""
    factors = factorize(DENSE.observe(), 8, rng())
    points = extended(DENSE) @ factors.right
    inverse = inverse_weights(factors, points, DENSE.labels)
    assert torch.allclose(inverse, torch.full_like(inverse, 8.0), rtol=1e-6)
    q = logit_gradients_of(DENSE, factors.weights)
    for k in range(8):
        left = factors.matrix - q[k : k + 1].T @ extended(DENSE)[k : k + 1] / 8.0
        assert int(torch.linalg.matrix_rank(left, rtol=1e-10)) == 7
    mixed = 0.5 * (points[:1] + points[1:2])
    assert abs(float(inverse_weights(factors, mixed, DENSE.labels[:1])) - 8.0) > 0.1


def test_deflation_leaves_the_gradient_of_the_other_samples():
    factors = factorize(DENSE.observe(), 8, rng())
    rows, q = extended(DENSE), logit_gradients_of(DENSE, factors.weights)
    rest = deflate(factors, rows[:5], q[:5] / 8.0)
    assert rest.rank == 3
    assert torch.allclose(rest.matrix, q[5:].T @ rows[5:] / 8.0, atol=1e-12)
    assert torch.allclose(rows[5:] @ rest.right @ rest.right.T, rows[5:], atol=1e-6)
