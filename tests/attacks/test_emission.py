import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.attacks.emission import emit_labels
from labelleak.restoration import Flag
from synthetic import emitted_by_hand

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
    found = emit_labels(*tensors(evidence, impact), total, *tensors(offset))
    counts, flags = found.counts, found.flags
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
    counts = emit_labels(evidence, impact, int(total), offset).counts
    shuffled = emit_labels(evidence[order], impact[order], int(total), offset[order]).counts
    assert torch.equal(shuffled, counts[order])


def test_a_case_worked_by_hand():
    """Stage 1 emits 0 and 2, which leaves -2 and -0.5: then 0 while its evidence is the least."""
    evidence, impact = tensors([-3.0, 0.5, -1.5, 0.25], [-1.0] * 4)
    counts = [
        emit_labels(evidence, impact, total).counts.tolist() for total in (1, 2, 3, 4, 5, 6, 7)
    ]
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
    assert emit_labels(evidence, impact, 4).counts.tolist() == [2, 1, 1]
    evidence = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    assert emit_labels(evidence, impact, 2).counts.tolist() == [1, 1, 0]


@pytest.mark.parametrize("impact", [0.0, 1.0])
def test_an_impact_of_the_wrong_sign_still_ends(impact):
    evidence, impacts = tensors([2.0, 1.0, 3.0], [impact] * 3)
    assert emit_labels(evidence, impacts, 5).counts.tolist() == [0, 5, 0]


def test_the_evidence_is_left_as_it_was():
    evidence, impact = tensors([-1.0, 1.0], [-1.0, -1.0])
    kept = evidence.clone()
    emit_labels(evidence, impact, 3, evidence.clone())
    assert torch.equal(evidence, kept)


def test_emitted_counts_make_a_restoration():
    found = emit_labels(*tensors([-3.0, 1.0, -1.0], [-1.0] * 3), 4)
    assert found.counts.tolist() == [3, 0, 1]
    assert found.present.tolist() == [True, False, True]
    assert found.proportions.tolist() == [0.75, 0.0, 0.25]


def test_one_impact_stands_for_all_classes():
    evidence, impact = tensors([-3.0, 1.0, -1.0], [-1.0] * 3)
    found = emit_labels(evidence, evidence.new_tensor(-1.0), 6)
    assert torch.equal(found.counts, emit_labels(evidence, impact, 6).counts)


@pytest.mark.parametrize("total", [50, 1000, 30_000])
@pytest.mark.parametrize("seed", range(3))
def test_many_labels_are_those_of_one_by_one(total, seed):
    generator = torch.Generator().manual_seed(seed)
    evidence = torch.randn(12, generator=generator, dtype=torch.float64)
    impact = -0.01 - torch.rand(12, generator=generator, dtype=torch.float64)
    offset = 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
    found = emit_labels(evidence, impact, total, offset).counts
    assert found.tolist() == emitted_by_hand(
        evidence.tolist(), impact.tolist(), total, offset.tolist()
    )


@pytest.mark.parametrize("total", [900, 2500, 50_000])
def test_labels_of_many_classes_are_those_of_one_by_one(total):
    generator = torch.Generator().manual_seed(total)
    # Quarters make many ties, and only some of the classes are emitted.
    evidence = torch.randint(-40, 40, (2000,), generator=generator).double() / 4
    found = emit_labels(evidence, evidence.new_tensor(-0.25), total).counts
    left, counts = evidence.clone(), torch.zeros(2000, dtype=torch.int64)
    negative = (evidence < 0).nonzero()[:, 0]
    first = negative[evidence[negative].sort(stable=True).indices[:total]]
    counts[first], left[first] = 1, left[first] + 0.25
    while int(counts.sum()) < total:
        least = int(left.argmin())
        counts[least] += 1
        left[least] += 0.25
    assert torch.equal(found, counts)


@pytest.mark.parametrize("total", [10**9, 2**53 - 1])
def test_any_number_of_labels_leaves_all_classes_at_one_level(total):
    evidence, impact = tensors([-3.0, 0.5, -1.5, 0.25], [-1.0, -0.5, -2.0, -1.0])
    counts = emit_labels(evidence, impact, total).counts
    assert int(counts.sum()) == total
    left = evidence - counts * impact
    # The next emission of any class would stand above the last one of every other.
    assert bool((left[:, None] >= (left + impact)[None, :] - 1e-9 * total).all())


def test_steps_that_vanish_beside_the_evidence_still_end():
    evidence, impact = tensors([-1e200, 1e200, 0.0], [-1e-9] * 3)
    assert emit_labels(evidence, impact, 10**9).counts.tolist() == [10**9, 0, 0]


@given(problem=problems, stuck=st.integers(0, 7), step=st.sampled_from([0.0, 0.25]))
def test_a_class_whose_evidence_does_not_rise_takes_what_is_left(problem, stuck, step):
    evidence, impact, total, offset = problem
    impact = [step if label == stuck else value for label, value in enumerate(impact)]
    found = emit_labels(*tensors(evidence, impact), 40 * total, *tensors(offset))
    assert found.counts.tolist() == emitted_by_hand(evidence, impact, 40 * total, offset)
