from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.attacks import restore
from labelleak.attacks.published.signs import gradinversion, idlg, restore_set
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import rng, told, untrained

RULES = [idlg, gradinversion]


def observation(rows, **knowledge):
    weight = torch.tensor(rows, dtype=torch.float64)
    return Observation(Head(torch.ones_like(weight)), HeadGradient(weight), **told(**knowledge))


def classes_of(found):
    return found.present.nonzero()[:, 0].tolist()


# Row sums 1, -3, 0, -1; row minima -1, -4, -2, -1.
ROWS = [[2.0, -1.0], [1.0, -4.0], [2.0, -2.0], [0.0, -1.0]]


@pytest.mark.parametrize(
    ("rule", "variant", "size", "expected"),
    [
        (idlg, "extended", None, [1, 3]),
        (idlg, "original", None, [1]),
        (gradinversion, "extended", None, [0, 1, 2, 3]),
        (gradinversion, "original", 1, [1]),
        (gradinversion, "original", 2, [1, 2]),
        # Ties go to the lowest class.
        (gradinversion, "original", 3, [0, 1, 2]),
    ],
)
def test_the_rules_by_hand(rule, variant, size, expected):
    found = rule(observation(ROWS, batch_size=size), variant=variant)
    assert classes_of(found) == expected
    assert found.attack == rule.__name__


def test_a_row_without_a_negative_entry_is_absent():
    rows = [[0.0, 0.0], [-1.0, 5.0], [1.0, 2.0]]
    assert classes_of(gradinversion(observation(rows))) == [1]
    assert classes_of(idlg(observation(rows))) == []


@pytest.mark.parametrize("rule", RULES)
def test_extended_is_the_default(rule):
    seen = observation(ROWS, batch_size=2)
    assert torch.equal(rule(seen).present, rule(seen, variant="extended").present)


@pytest.mark.parametrize("rule", RULES)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 30),
    size=st.integers(1, 40),
    scale=st.floats(0, 20),
)
def test_with_non_negative_embeddings_no_absent_class_is_claimed(rule, seed, classes, size, scale):
    batch = untrained(classes, 15, size, seed, spread=1.0, scale=scale)
    present = rule(batch.observe()).present
    assert not (present & ~batch.present).any()
    if rule is idlg:
        # A negative sum has a negative term.
        assert not (present & ~gradinversion(batch.observe()).present).any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", ["extended", "original"])
@pytest.mark.parametrize("seed", range(5))
def test_a_single_sample_is_exact(rule, variant, seed):
    batch = untrained(10, 30, 1, seed)
    found = rule(batch.observe(), variant=variant)
    assert torch.equal(found.present, batch.present)
    assert torch.equal(found.counts, batch.counts)


@pytest.mark.parametrize("seed", range(5))
def test_with_signed_embeddings_absent_classes_are_claimed(seed):
    """The attacks assume non-negative embeddings: otherwise the sign says nothing."""
    batch = untrained(20, 30, 4, seed)
    batch.embeddings = batch.embeddings - batch.embeddings.mean()
    assert (gradinversion(batch.observe()).present & ~batch.present).any()
    # The sign of a row's sum is that of the embedding's sum.
    batch.embeddings = -batch.embeddings.abs()
    assert torch.equal(idlg(batch.observe()).present, ~batch.present)


@pytest.mark.parametrize("seed", range(5))
def test_where_no_class_repeats_the_original_gradinversion_is_exact(seed):
    batch = untrained(20, 30, 8, seed)
    batch.labels = torch.randperm(20, generator=rng(seed))[:8]
    found = gradinversion(batch.observe(), variant="original")
    assert torch.equal(found.present, batch.present)
    assert torch.equal(found.counts, batch.counts)


@pytest.mark.parametrize("size", [None, 5])
def test_the_original_gradinversion_needs_a_fitting_batch_size(size):
    with pytest.raises(ValueError, match="needs a batch size K of at most 4") as refused:
        gradinversion(observation(ROWS, batch_size=size), variant="original")
    assert "\n" not in str(refused.value)


def test_the_original_gradinversion_counts_the_instances_of_all_steps():
    seen = observation(ROWS, batch_size=1, local_steps=2)
    assert classes_of(gradinversion(seen, variant="original")) == [1, 2]


@pytest.mark.parametrize("rule", RULES)
def test_an_unknown_variant_is_refused_in_one_line(rule, unchecked):
    message = "^variant 'first': use 'extended' or 'original'$"
    with pytest.raises(ValueError, match=message):
        rule(observation(ROWS), variant="first")
    with pytest.raises(ValueError, match=message):
        restore(observation(ROWS), rule.__name__, variant="first")


@pytest.mark.parametrize(
    ("present", "knowledge", "counts"),
    [
        ([0, 1, 0, 0], {"batch_size": 7}, [0, 7, 0, 0]),
        ([0, 1, 0, 0], {"batch_size": 7, "local_steps": 3}, [0, 21, 0, 0]),
        ([1, 1, 0, 1], {"batch_size": 3}, [1, 1, 0, 1]),
        ([1, 1, 1, 1], {"batch_size": 2, "local_steps": 2}, [1, 1, 1, 1]),
        ([1, 0, 0, 0], {"batch_size": 1}, [1, 0, 0, 0]),
        ([1, 1, 0, 0], {"batch_size": 3}, None),
        ([1, 1, 1, 0], {"batch_size": 2}, None),
        ([0, 1, 0, 0], {}, None),
        ([0, 0, 0, 0], {"batch_size": 3}, None),
    ],
)
def test_a_set_yields_counts_only_where_they_follow(present, knowledge, counts):
    seen = observation(ROWS, **knowledge)
    found = restore_set(seen, torch.tensor(present, dtype=torch.bool))
    assert found.present.tolist() == [bool(entry) for entry in present]
    if counts is None:
        assert found.counts is None
    else:
        assert found.counts.dtype == torch.int64
        assert found.counts.tolist() == counts
    for other in (found.raw, found.rounded, found.proportions):
        assert other is None


def test_the_bias_plays_no_part():
    batch = untrained(10, 30, 4)
    seen = batch.observe()
    without = replace(seen, gradient=HeadGradient(seen.gradient.weight))
    for rule in RULES:
        assert torch.equal(rule(seen).present, rule(without).present)
