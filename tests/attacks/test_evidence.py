import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.attacks._evidence import (
    bias_gradient,
    conclude,
    emit,
    emitted,
    instances,
    mean_divisor,
    row_sums,
)
from labelleak.errors import MissingKnowledge
from labelleak.observation import HeadGradient
from labelleak.restoration import Flag
from synthetic import emitted_by_hand, untrained

# Multiples of a power of two: no sum is rounded, and there are many ties.
quarters = st.integers(-40, 40).map(lambda number: number / 4)
problems = st.integers(2, 8).flatmap(
    lambda classes: st.tuples(
        st.lists(quarters, min_size=classes, max_size=classes),
        st.lists(quarters.filter(lambda x: x < 0), min_size=classes, max_size=classes),
        st.integers(1, 40),
        st.lists(quarters, min_size=classes, max_size=classes),
    )
)


def tensors(*lists):
    return [torch.tensor(values, dtype=torch.float64) for values in lists]


@given(problems)
def test_labels_are_emitted_as_in_the_published_algorithm(problem):
    evidence, impact, total, offset = problem
    counts, flags = emit(*tensors(evidence, impact), total, *tensors(offset))
    assert counts.tolist() == emitted_by_hand(evidence, impact, total, offset)
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == total
    many = sum(value < 0 for value in evidence) > total
    assert flags == ((Flag.TOTAL_DOES_NOT_FIT,) if many else ())


@given(problem=problems, seed=st.integers(0, 1000))
def test_another_order_of_the_classes_gives_the_same_counts(problem, seed):
    evidence, impact, total, offset = tensors(*problem[:2], [problem[2]], problem[3])
    # Distinct numbers, so that no tie is broken by the order.
    evidence += torch.arange(len(evidence)) * 2.0**-20
    order = torch.randperm(len(evidence), generator=torch.Generator().manual_seed(seed))
    counts, _ = emit(evidence, impact, int(total), offset)
    shuffled, _ = emit(evidence[order], impact[order], int(total), offset[order])
    assert torch.equal(shuffled, counts[order])


def test_a_case_worked_by_hand():
    """Stage 1 emits 0 and 2; then -1 and -0.5 are left, and 0 wins until it passes 2."""
    evidence, impact = tensors([-3.0, 0.5, -1.5, 0.25], [-1.0] * 4)
    counts = [emit(evidence, impact, total)[0].tolist() for total in (1, 2, 3, 4, 5, 6, 7)]
    assert counts == [
        [1, 0, 0, 0],
        [1, 0, 1, 0],
        [2, 0, 1, 0],
        [3, 0, 1, 0],
        [3, 0, 2, 0],
        [4, 0, 2, 0],
        [4, 0, 2, 1],
    ]


def test_ties_go_to_the_lowest_class():
    evidence, impact = tensors([1.0, 1.0, 1.0], [-1.0] * 3)
    assert emit(evidence, impact, 4)[0].tolist() == [2, 1, 1]
    evidence = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    assert emit(evidence, impact, 2)[0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("impact", [0.0, 1.0])
def test_an_impact_of_the_wrong_sign_still_ends(impact):
    evidence, impacts = tensors([2.0, 1.0, 3.0], [impact] * 3)
    assert emit(evidence, impacts, 5)[0].tolist() == [0, 5, 0]


def test_the_evidence_is_left_as_it_was():
    evidence, impact = tensors([-1.0, 1.0], [-1.0, -1.0])
    kept = evidence.clone()
    emit(evidence, impact, 3, evidence.clone())
    assert torch.equal(evidence, kept)


def test_emitted_counts_make_a_restoration():
    found = emitted("mine", torch.tensor([3, 0, 1]), (Flag.TOTAL_DOES_NOT_FIT,))
    assert found.attack == "mine"
    assert found.present.tolist() == [True, False, True]
    assert found.proportions.tolist() == [0.75, 0.0, 0.25]
    assert found.flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_a_summed_loss_is_put_to_the_scale_of_a_mean():
    batch = untrained(5, 8, 6)
    mean = batch.observe()
    total = HeadGradient(mean.gradient.weight * 6, mean.gradient.bias * 6)
    summed = batch.observe(total, reduction="sum")
    torch.testing.assert_close(row_sums(summed), row_sums(mean))
    torch.testing.assert_close(bias_gradient(summed), bias_gradient(mean))
    torch.testing.assert_close(row_sums(mean), mean.gradient.weight.sum(dim=1))
    assert (mean_divisor(mean), mean_divisor(summed)) == (1, 6)


def test_what_is_missing_is_named():
    batch = untrained(5, 8, 6)
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        row_sums(batch.observe(reduction="sum", batch_size=None))
    with pytest.raises(MissingKnowledge, match="bias gradient is missing"):
        bias_gradient(batch.observe(bias=False))
    with pytest.raises(MissingKnowledge, match="batch size is missing"):
        instances(batch.observe(batch_size=None))


def test_real_numbers_become_counts():
    raw = torch.tensor([2.4, -0.3, 0.9], dtype=torch.float64)
    found = conclude("mine", raw, 3)
    assert found.counts.tolist() == [2, 0, 1]
    assert found.rounded.tolist() == [2, 0, 1]
    assert found.raw is raw
    torch.testing.assert_close(found.proportions.sum().item(), 1.0)
    assert found.flags == ()
    assert conclude("mine", raw * 3, 3).flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_shares_stay_shares():
    found = conclude("mine", torch.tensor([0.7, -0.1, 0.4], dtype=torch.float64), None)
    assert found.counts is None
    assert found.rounded is None
    torch.testing.assert_close(
        found.proportions, torch.tensor([0.65, 0.0, 0.35], dtype=torch.float64)
    )
    assert found.present.tolist() == [True, False, True]
