import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import null_space
from scipy.optimize import linprog, nnls

from labelleak.attacks.published import rlg as module
from labelleak.attacks.published.rlg import rlg, separable
from labelleak.errors import MissingKnowledge
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import rng, untrained


def basis_of(matrix):
    """Orthonormal basis of the space that the columns span; rows of zeros stay zero."""
    left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    basis = left[:, values > 1e-9 * values[0]]
    # The linear program below has unbounded unknowns: it would separate rounding errors.
    return torch.where(basis.norm(dim=1, keepdim=True) > 1e-9, basis, 0.0)


def random_basis(classes, rank, seed, *, sums_to_zero=True, integers=False):
    if integers:
        # Small integers make degenerate cases: equal, opposite and zero rows.
        matrix = torch.randint(-2, 3, (classes, rank), generator=rng(seed)).double()
    else:
        matrix = torch.randn(classes, rank, generator=rng(seed), dtype=torch.float64)
    if sums_to_zero:
        matrix[-1] -= matrix.sum(0)
    return basis_of(matrix)


def cut_off_by_farkas(basis):
    """Farkas: a row is cut off unless it is a sum of non-negative multiples of the others."""
    rows = basis.numpy()
    return [bool(nnls(np.delete(rows, i, axis=0).T, rows[i])[1] > 1e-7) for i in range(len(rows))]


def cut_off_by_program(basis):
    """As the paper states it: some r with (r Q)_i < 0 and (r Q)_j >= 0, here -1 and r unbounded."""
    rows = basis.numpy()
    classes, rank = rows.shape
    answers = []
    for i in range(classes):
        lower = np.zeros(classes)
        upper = np.full(classes, np.inf)
        lower[i] = upper[i] = -1.0
        # Unknowns (r, v) with rows @ r - v = 0; only v is bounded.
        solved = linprog(
            np.zeros(rank + classes),
            A_eq=np.hstack([rows, -np.eye(classes)]),
            b_eq=np.zeros(classes),
            bounds=[(None, None)] * rank + list(zip(lower, upper, strict=True)),
        )
        answers.append(bool(solved.status == 0))
    return answers


def by_projection(basis):
    """Whether each class is cut off, and whether it is held, as far as projections decide."""
    projector = basis @ basis.T
    asked = (projector.sum(dim=1), projector, torch.arange(len(basis)))
    outside = torch.ones(len(basis), dtype=torch.bool)
    outside[module._candidates(basis, projector.sum(dim=1))] = False
    return module._cut_off_by_regression(*asked), module._held_by_others(*asked) | outside


SIZES = [(classes, rank) for classes in (3, 4, 6, 9) for rank in range(1, classes)]


@pytest.mark.parametrize(("classes", "rank"), SIZES)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("sums_to_zero", [False, True])
def test_separable_agrees_with_farkas_and_with_a_linear_program(
    classes, rank, integers, sums_to_zero
):
    for seed in range(4):
        basis = random_basis(classes, rank, seed, sums_to_zero=sums_to_zero, integers=integers)
        answer = separable(basis).tolist()
        assert answer == cut_off_by_farkas(basis)
        assert answer == cut_off_by_program(basis)


@pytest.mark.parametrize(("classes", "rank"), SIZES)
@pytest.mark.parametrize("integers", [False, True])
def test_both_forms_of_the_program_decide_every_class(classes, rank, integers):
    for seed in range(4):
        basis = random_basis(classes, rank, seed, integers=integers)
        rows = torch.nn.functional.normalize(basis, dim=1).numpy()
        complement = null_space(rows.T)
        expected = cut_off_by_farkas(basis)
        by_direction = [module._cut_off_by_direction(rows, i, math.inf) for i in range(classes)]
        assert by_direction == expected
        if complement.size:
            by_pattern = [
                module._cut_off_by_pattern(complement, i, math.inf) for i in range(classes)
            ]
            assert by_pattern == expected


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 14),
    share=st.floats(0, 1),
    integers=st.booleans(),
    sums_to_zero=st.booleans(),
)
def test_the_tests_by_projection_are_never_wrong(seed, classes, share, integers, sums_to_zero):
    rank = max(1, round(share * (classes - 1)))
    basis = random_basis(classes, rank, seed, integers=integers, sums_to_zero=sums_to_zero)
    expected = torch.tensor(cut_off_by_farkas(basis))
    cut_off, held = by_projection(basis)
    assert not (cut_off & ~expected).any()
    assert not (held & expected).any()


@pytest.mark.parametrize(("classes", "rank"), [(60, 3), (60, 12), (200, 24), (400, 24)])
def test_few_classes_of_a_gradient_are_left_to_the_programs(classes, rank):
    """At most twice the rank, however many classes there are, and all present ones."""
    _, held = by_projection(random_basis(classes, rank, seed=classes))
    assert int((~held).sum()) <= 2 * rank
    batch = untrained(classes, 100, rank, spread=0.5, scale=4.0)
    basis = basis_of(batch.gradient().weight)
    left = ~by_projection(basis)[1]
    assert int(batch.present.sum()) <= int(left.sum()) <= 2 * rank
    # The others cost nothing: no matrix of all classes by all is made.
    assert len(module._candidates(basis, basis @ basis.sum(dim=0))) <= 2 * rank


@pytest.mark.parametrize("rounding", [3e-16, -3e-16])
def test_the_rounding_of_a_row_of_zeros_decides_nothing(rounding):
    basis = torch.tensor([[-1.0], [1.0], [rounding]], dtype=torch.float64) / 2**0.5
    assert separable(basis).tolist() == [True, True, False]


def test_an_empty_space_cuts_nothing_off():
    assert not separable(torch.zeros(5, 0, dtype=torch.float64)).any()


def test_all_classes_are_separable_in_all_vectors_that_sum_to_zero():
    ones = torch.ones(6, 1, dtype=torch.float64)
    basis = torch.from_numpy(null_space(ones.numpy().T))
    assert separable(basis).all()


@pytest.mark.parametrize(
    ("classes", "features", "size"),
    [(10, 300, 4), (100, 84, 24), (100, 84, 60), (300, 600, 24), (300, 600, 280)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_an_untrained_head_the_set_is_exact(classes, features, size, dtype):
    batch = untrained(classes, features, size, seed=size, dtype=dtype)
    assert torch.equal(rlg(batch.observe(dtype=dtype)).present, batch.present)


@pytest.mark.parametrize("seed", range(5))
def test_on_a_confident_head_the_set_is_exact(seed):
    """The projections decide little there: every present class needs a linear program."""
    batch = untrained(40, 100, 12, seed, spread=0.5, scale=4.0)
    cut_off, held = by_projection(basis_of(batch.gradient().weight))
    decided = cut_off | held
    assert not decided[batch.present].all()
    assert torch.equal(rlg(batch.observe()).present, batch.present)


def test_programs_that_outlast_the_limit_are_refused_and_not_guessed():
    batch = untrained(40, 100, 12, spread=0.5, scale=4.0)
    readings = iter([0.0, 0.1, 0.2, 2.1])
    with pytest.raises(MissingKnowledge, match=r"here 1\d of 40, and the time limit is over"):
        rlg(batch.observe(), time_limit=2.0, now=lambda: next(readings))
    found = rlg(batch.observe(), time_limit=2.0, now=lambda: 0.0)
    assert torch.equal(found.present, batch.present)


def test_many_classes_and_a_batch_larger_than_both_take_no_time(monkeypatch):
    """The projections decide all classes: hundreds of linear programs would take seconds each."""

    def program(*arguments):
        raise AssertionError("a linear program was solved")

    for name in ("_cut_off_by_direction", "_cut_off_by_pattern"):
        monkeypatch.setattr(module, name, program)
    for size in (24, 200, 300):
        batch = untrained(400, 500, size, seed=size, dtype=torch.float32)
        assert torch.equal(rlg(batch.observe(dtype=torch.float32)).present, batch.present)
    # A rank of classes - 1: the rows span all vectors that sum to zero.
    assert rlg(untrained(400, 500, 800, spread=1.0).observe()).present.all()


@pytest.mark.parametrize(("rank", "refused"), [(7, False), (8, False), (9, True)])
def test_a_rank_at_which_all_is_separable_is_refused_only_if_strict(rank, refused):
    batch = untrained(10, 300, rank, seed=3, spread=1.0)
    batch.labels %= 4
    found = rlg(batch.observe())
    assert found.present.all() == refused
    if refused:
        with pytest.raises(
            MissingKnowledge, match=r"every one of 10 classes .* of rank 9"
        ) as error:
            rlg(batch.observe(), strict=True)
        assert "\n" not in str(error.value)
    else:
        assert torch.equal(rlg(batch.observe(), strict=True).present, found.present)


def test_the_rank_is_that_of_the_gradient_whatever_the_batch_size_is_said_to_be():
    batch = untrained(30, 60, 10)
    expected = rlg(batch.observe()).present
    assert torch.equal(expected, batch.present)
    for size in (None, 1, 4, 1000):
        assert torch.equal(rlg(batch.observe(batch_size=size)).present, expected)


def test_repeated_samples_lower_the_rank_and_not_the_set():
    batch = untrained(30, 60, 6)
    batch.embeddings = batch.embeddings.repeat(10, 1)
    batch.labels = batch.labels.repeat(10)
    assert torch.equal(rlg(batch.observe()).present, batch.present)


@pytest.mark.parametrize(
    ("classes", "features", "size"), [(30, 8, 8), (30, 8, 64), (9, 4, 20), (100, 20, 30)]
)
def test_a_rank_that_is_not_below_the_features_is_refused(classes, features, size):
    batch = untrained(classes, features, size, spread=1.0)
    # No feature is zero in all samples.
    batch.embeddings += torch.rand(size, features, generator=rng(1), dtype=torch.float64)
    message = rf"rank below {min(classes, features)} .* full rank: the batch is too large or noise"
    with pytest.raises(MissingKnowledge, match=message) as refused:
        rlg(batch.observe())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("classes", "features"), [(10, 300), (100, 84)])
def test_a_noisy_gradient_is_refused(classes, features):
    gradient = untrained(classes, features, 4).gradient()
    noise = torch.randn(gradient.weight.shape, generator=rng(), dtype=torch.float64)
    noisy = HeadGradient(gradient.weight + 1e-4 * noise)
    head = Head(torch.ones(classes, features, dtype=torch.float64))
    with pytest.raises(MissingKnowledge, match="full rank"):
        rlg(Observation(head, noisy))


def test_noise_that_the_gradient_is_known_to_carry_is_no_rank():
    """A difference of weights has such noise: both were rounded."""
    batch = untrained(100, 84, 4, spread=1.0)
    gradient = batch.gradient()
    noise = torch.randn(gradient.weight.shape, generator=rng(), dtype=torch.float64)
    noisy = HeadGradient(gradient.weight + 1e-7 * noise, rounding=2e-7)
    assert torch.equal(rlg(batch.observe(noisy, bias=False)).present, batch.present)


def test_positive_factors_per_class_change_nothing():
    """They change no sign. Class weights are about such factors."""
    batch = untrained(20, 40, 6)
    gradient = batch.gradient().weight
    factors = 0.5 + torch.rand(20, 1, generator=rng(), dtype=torch.float64)
    observation = batch.observe(bias=False)
    scaled = replace(observation, gradient=HeadGradient(factors * gradient))
    assert torch.equal(rlg(scaled).present, batch.present)


def test_counts_follow_where_every_sample_has_a_class_of_its_own():
    batch = untrained(20, 40, 6)
    batch.labels = torch.tensor([3, 5, 7, 11, 13, 17])
    assert torch.equal(rlg(batch.observe()).counts, batch.counts)
    batch.labels = torch.tensor([3, 5, 7, 11, 13, 3])
    assert rlg(batch.observe()).counts is None
