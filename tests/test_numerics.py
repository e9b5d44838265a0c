import math

import numpy as np
import pytest
import torch

from labelleak.numerics import (
    machine_epsilon,
    minimum_norm_least_squares,
    numerical_rank,
    product_of_low_rank,
    root_mean_square,
    solve_square,
    sums_of_rows,
)
from labelleak.observation import HeadGradient
from labelleak.updates import observe_update
from synthetic import rng, untrained


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def low_rank(rows, columns, rank, seed=0):
    return randn(rows, rank, seed=seed) @ randn(rank, columns, seed=seed + 1)


@pytest.mark.parametrize("size", [1, 2, 10, 60])
@pytest.mark.parametrize("seed", range(5))
def test_a_regular_system_is_solved(size, seed):
    matrix, right = randn(size, size, seed=seed), randn(size, seed=seed + 100)
    solution = solve_square(matrix, right)
    expected = np.linalg.solve(matrix.numpy(), right.numpy())
    np.testing.assert_allclose(solution.values.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(30))
def test_the_condition_number_is_estimated_from_below(seed):
    size = 2 + seed
    matrix = randn(size, size, seed=seed) * torch.logspace(0, seed / 4, size, dtype=torch.float64)
    true = float(np.linalg.cond(matrix.numpy(), 1))
    estimate = solve_square(matrix, randn(size)).condition
    assert true / 3 <= estimate <= true * (1 + 1e-6)


def test_the_condition_number_of_a_diagonal_is_exact():
    diagonal = torch.diag(torch.tensor([1.0, 8.0, 0.25], dtype=torch.float64))
    assert solve_square(diagonal, randn(3)).condition == 32


SINGULAR = {
    "rank 3 of 8": low_rank(8, 8, 3),
    "equal columns": randn(6, 6)[:, [0, 1, 2, 3, 4, 4]],
    "zero column": randn(5, 5) * torch.tensor([1.0, 1, 0, 1, 1]).double(),
    "nearly equal columns": randn(6, 6)[:, [0, 1, 2, 3, 4, 4]] + 1e-17 * torch.eye(6).double(),
    "zero": torch.zeros(4, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("matrix", SINGULAR.values(), ids=SINGULAR)
def test_a_singular_system_gets_the_minimum_norm_solution(matrix):
    right = randn(len(matrix), seed=9)
    solution = solve_square(matrix, right)
    assert solution.condition == torch.inf
    cutoff = np.finfo(np.float64).eps * len(matrix)
    expected = np.linalg.pinv(matrix.numpy(), rcond=cutoff) @ right.numpy()
    np.testing.assert_allclose(solution.values.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
@pytest.mark.parametrize("rank", [2, 4])
def test_least_squares_of_any_shape_and_rank(shape, rank):
    matrix, right = low_rank(*shape, rank), randn(shape[0], seed=5)
    expected = np.linalg.pinv(matrix.numpy(), rcond=1e-12) @ right.numpy()
    solution = minimum_norm_least_squares(matrix, right)
    np.testing.assert_allclose(solution.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rank", [3, 12, None])
@pytest.mark.parametrize("inner", [20, 300])
def test_a_product_is_right_whatever_the_rank_is_said_to_be(rank, inner):
    """The bound on the rank may be too low, or noise may raise the rank above it."""
    for left in (low_rank(200, inner, 8), low_rank(200, inner, 3)):
        for noise in (0.0, 1e-3):
            noisy = left + noise * randn(200, inner, seed=3)
            right = randn(inner, 150, seed=4)
            product = product_of_low_rank(noisy, right, rank, rounding=1e-12)
            torch.testing.assert_close(product, noisy @ right, rtol=0, atol=1e-8)


def test_a_product_of_a_known_rank_is_as_good_as_its_entries():
    exact = low_rank(200, 300, 5)
    rounded = exact.float().double()
    right = randn(300, 150, seed=4)
    rounding = float((rounded - exact).square().mean().sqrt()) * 4
    product = product_of_low_rank(rounded, right, 5, rounding)
    size = float(right.square().sum(0).sqrt().mean())
    assert float((product - exact @ right).abs().max()) <= 10 * rounding * size


def rank_of(matrix, rounding):
    return numerical_rank(torch.linalg.svdvals(matrix.double()), matrix.shape, rounding)


@pytest.mark.parametrize("shape", [(10, 300), (100, 84), (300, 40), (200, 200)])
@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("error", [1e-9, 1e-5, 1e-3])
def test_the_rank_does_not_count_errors_of_the_entries(shape, rank, error):
    matrix = low_rank(*shape, rank)
    assert rank_of(matrix + error * randn(*shape, seed=7), 1.1 * error) == rank
    # Errors that it does not know of count as rank.
    assert rank_of(matrix + error * randn(*shape, seed=7), 0.1 * error) >= 0.8 * min(shape)


@pytest.mark.parametrize(("classes", "features"), [(10, 300), (100, 84), (150, 600)])
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_rank_of_a_gradient_is_its_number_of_samples(classes, features, size, dtype):
    gradient = untrained(classes, features, size, spread=1.0).gradient(dtype)
    assert rank_of(gradient.weight, gradient.rounding) == size


@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 2, 8, 24])
def test_the_rank_is_the_same_in_whatever_format_a_gradient_is_stored(size, stored):
    gradient = untrained(100, 84, size, spread=1.0).gradient(torch.float32)
    again = HeadGradient(gradient.weight.to(stored))
    assert again.rounding == pytest.approx(gradient.rounding)
    assert rank_of(again.weight, again.rounding) == size


@pytest.mark.parametrize("learning_rate", [0.1, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_rank_of_a_difference_of_weights_counts_no_rounding(dtype, learning_rate):
    batch = untrained(100, 84, 6, spread=1.0, dtype=dtype)
    before = {"fc.weight": batch.weight.to(dtype)}
    step = learning_rate * batch.gradient(dtype).weight
    after = {"fc.weight": before["fc.weight"] - step}
    observation = observe_update(None, before, after, learning_rate=learning_rate)
    assert rank_of(observation.gradient.weight, observation.gradient.rounding) == 6
    error = (before["fc.weight"].double() - after["fc.weight"].double()) / learning_rate
    error -= batch.gradient().weight
    # Not far above the truth: samples would be taken for rounding errors.
    assert 1 <= observation.gradient.rounding / root_mean_square(error) <= 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_half_precision_hides_samples_and_makes_up_none(size, dtype):
    gradient = untrained(100, 84, size, spread=1.0).gradient(dtype)
    assert 1 <= rank_of(gradient.weight, gradient.rounding) <= size


def test_a_matrix_of_any_size_but_zero_has_a_rank():
    assert rank_of(torch.full((3, 4), 1e-30), rounding=1.0) == 1
    assert rank_of(torch.zeros(3, 4), rounding=0.0) == 0


EPSILON = {
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float32: 2**-23,
    torch.float64: 2**-52,
}


def test_one_entry_that_is_finer_makes_a_gradient_fine():
    weight = torch.ones(50, 3, dtype=torch.float64)
    assert machine_epsilon(weight) == EPSILON[torch.bfloat16]
    weight[-1, -1] += 2.0**-9
    assert machine_epsilon(weight) == EPSILON[torch.half]
    weight[-1, -1] += 2.0**-40
    assert machine_epsilon(weight) == EPSILON[torch.float64]


def test_the_sums_of_rows_are_those_of_double_precision():
    """Of many blocks of rows, with a row that cancels in single precision."""
    matrix = torch.randn(700, 300, generator=rng())
    matrix[3, :3] = torch.tensor([1e8, 1.0, -1e8])
    expected = torch.tensor([math.fsum(row) for row in matrix.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sums_of_rows(matrix), expected, rtol=1e-9, atol=1e-6)


def test_the_root_mean_square_by_hand():
    assert root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == 2.5


# The first rows alone, several blocks with a rest, and rows longer than a block.
@pytest.mark.parametrize("shape", [(7,), (300_000,), (700, 901), (3, 300_000)], ids=str)
def test_a_large_tensor_is_read_block_by_block(shape):
    tensor = torch.randn(shape, generator=rng())
    coarse = tensor.bfloat16().float()
    expected = float(tensor.double().square().mean().sqrt())
    assert root_mean_square(tensor) == pytest.approx(expected, rel=1e-12)
    assert machine_epsilon(tensor) == EPSILON[torch.float32]
    assert machine_epsilon(coarse) == EPSILON[torch.bfloat16]
    coarse.view(-1)[-1] = tensor.view(-1)[-1]
    assert machine_epsilon(coarse) == EPSILON[torch.float32]
