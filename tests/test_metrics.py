import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from labelleak import metrics
from labelleak.metrics import counts_of, score
from labelleak.restoration import Restoration
from labelleak.similarity import cosine_similarity

FOUND = torch.tensor([2, 0, 1, 3, 0])
TRUE = torch.tensor([2, 1, 0, 2, 0])  # K = 5


def restoration(counts, **more):
    return Restoration(counts > 0, counts, attack="some", **more)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.leacc, 3 / 5),  # classes 1 and 2 are wrong
        (metrics.lnacc, 2 / 5),  # classes 0 and 4 are right
        (metrics.recall, 4 / 5),  # 2 + 0 + 0 + 2
        (metrics.accuracy, 4 / 6),  # six instances were claimed
        (metrics.exact_match, False),
        (metrics.existence_precision, 2 / 3),  # 0, 2 and 3 claimed, 2 is not there
        (metrics.existence_recall, 2 / 3),  # 0, 1 and 3 are there, 1 was missed
    ],
)
def test_metrics_by_hand(metric, expected):
    assert metric(FOUND, TRUE) == expected
    assert type(metric(FOUND, TRUE)) is type(expected)
    assert metric(TRUE, TRUE) == 1


def brute_force(found, true):
    """All figures from the two lists of labels, matched one by one."""
    claimed = [index for index, number in enumerate(found) for _ in range(number)]
    actual = [index for index, number in enumerate(true) for _ in range(number)]
    left, hits = list(actual), 0
    for label in claimed:
        if label in left:
            left.remove(label)
            hits += 1
    classes = range(len(true))
    right_set = sum((index in claimed) == (index in actual) for index in classes)
    both = set(claimed) & set(actual)
    return {
        "leacc": right_set / len(true),
        "lnacc": sum(Counter(claimed)[i] == Counter(actual)[i] for i in classes) / len(true),
        "recall": hits / len(actual),
        "accuracy": hits / (len(actual) + max(0, len(claimed) - len(actual))),
        "exact": sorted(claimed) == sorted(actual),
        "existence_precision": len(both) / len(set(claimed)) if claimed else 1.0,
        "existence_recall": len(both) / len(set(actual)),
    }


@st.composite
def count_pairs(draw):
    true = draw(st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any))
    found = draw(
        st.one_of(
            st.just(true),
            st.permutations(true),
            st.lists(st.integers(0, 5), min_size=len(true), max_size=len(true)),
        )
    )
    return torch.tensor(found), torch.tensor(true)


@given(count_pairs())
def test_score_agrees_with_brute_force(pair):
    found, true = pair
    figures, expected = (
        score(restoration(found), true).as_dict(),
        brute_force(*map(Tensor.tolist, pair)),
    )
    assert {name: figures[name] for name in expected} == expected
    assert figures["above_guess"] == pytest.approx(figures["accuracy"] - figures["guess"])


@given(count_pairs(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(pair, random):
    found, true = pair
    order = list(range(len(true)))
    random.shuffle(order)
    shuffled, ordered = (
        score(restoration(found[places]), true[places]).as_dict()
        for places in (order, sorted(order))
    )
    assert shuffled == pytest.approx(ordered)


@given(count_pairs())
def test_relations_between_the_figures(pair):
    found, true = pair
    result = score(restoration(found), true)
    signed = ("above_guess", "relative_advantage", "small_cells_told")
    figures = result.as_dict()
    # Of counts that are all zero there are no shares.
    known = {name for name, value in figures.items() if value is not None}
    assert all(0 <= figures[name] <= 1 for name in known.difference(signed))
    assert result.relative_advantage <= 1
    assert result.small_cells_told is None  # neither intervals nor a certificate
    assert result.accuracy <= result.recall
    assert result.lnacc <= result.leacc
    assert result.exact == (result.accuracy == 1) == (result.lnacc == 1)
    assert (result.leacc == 1) == (result.existence_precision == result.existence_recall == 1)
    if found.sum() <= true.sum():
        assert result.accuracy == result.recall


def test_recall_does_not_see_excess_and_accuracy_does():
    result = score(restoration(torch.tensor([3, 3, 3])), torch.tensor([1, 1, 1]))
    assert (result.recall, result.accuracy, result.leacc) == (1, 1 / 3, 1)


def test_nothing_found_is_precise_and_recalls_nothing():
    result = score(restoration(torch.tensor([0, 0])), torch.tensor([3, 0]))
    assert (result.existence_precision, result.existence_recall) == (1, 0)


def test_without_counts_only_existence_is_scored():
    present = torch.tensor([True, False, True, True, False])
    found = Restoration(present=present, proportions=FOUND.double() / 6)
    of_shares = {"shares_linf", "shares_cosine", "shares_js"}
    figures = score(found, TRUE).as_dict()
    assert None not in [figures.pop(name) for name in of_shares]
    assert figures == {
        "leacc": 3 / 5,
        "lnacc": None,
        "recall": None,
        "accuracy": None,
        "exact": None,
        "existence_precision": 2 / 3,
        "existence_recall": 2 / 3,
        "guess": None,
        "above_guess": None,
        "relative_advantage": None,
        "small_cells_told": None,
    }
    assert score(found, TRUE, use="rounded") == score(found, TRUE)


def test_rounded_counts_are_scored_on_request():
    found = restoration(TRUE, rounded=FOUND)
    assert score(found, TRUE).exact is True
    assert score(found, TRUE, use="rounded") == score(restoration(FOUND), TRUE)


def test_an_attack_without_rounded_counts_is_scored_by_its_counts():
    assert score(restoration(FOUND), TRUE, use="rounded") == score(restoration(FOUND), TRUE)


def test_score_refuses_another_use(unchecked):
    with pytest.raises(ValueError, match="use='raw': choose 'counts' or 'rounded'"):
        score(restoration(FOUND), TRUE, use="raw")


def test_any_integer_dtype_will_do():
    assert score(restoration(FOUND), TRUE.to(torch.uint8)) == score(restoration(FOUND), TRUE)


@pytest.mark.parametrize(
    ("true", "message"),
    [
        (torch.tensor([1, 1]), "2 true counts for 5 classes"),
        (TRUE[None], r"true counts of shape \(1, 5\)"),
        (TRUE.double(), "torch.float64: one integer per class"),
        (TRUE > 0, "torch.bool: one integer per class"),
        (TRUE - 1, "true counts hold -1: none can be negative"),
        (TRUE * 0, "at least one instance"),
    ],
)
def test_wrong_true_counts_are_refused_in_one_line(true, message, unchecked):
    for found in (restoration(FOUND), Restoration(present=FOUND > 0)):
        with pytest.raises(ValueError, match=message) as caught:
            score(found, true)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.leacc,
        metrics.lnacc,
        metrics.recall,
        metrics.accuracy,
        metrics.exact_match,
        metrics.existence_precision,
        metrics.existence_recall,
    ],
)
def test_every_metric_checks_its_counts(metric, unchecked):
    with pytest.raises(ValueError, match="found counts hold -2"):
        metric(-FOUND.clamp_max(2), TRUE)
    with pytest.raises(ValueError, match="5 true counts for 1 classes"):
        metric(FOUND[:1], TRUE)


@given(st.lists(st.integers(0, 6), max_size=30), st.sampled_from([torch.int64, torch.uint8]))
def test_counts_of_labels(labels, dtype):
    counts = counts_of(torch.tensor(labels, dtype=dtype), 7)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [labels.count(index) for index in range(7)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), r"label 3: the classes are 0\.\.2$"),
        (torch.tensor([0, -1, 5]), r"label -1: the classes are 0\.\.2$"),
        (torch.tensor([0.0, 1.0]), "torch.float32: a list of integers"),
        (torch.tensor([[0, 1]]), r"shape \(1, 2\)"),
    ],
)
def test_counts_of_refuses_what_is_no_label(labels, message, unchecked):
    with pytest.raises(ValueError, match=message):
        counts_of(labels, 3)


def test_cosine_similarity_by_hand():
    found = torch.tensor([[3.0, 4.0], [1.0, 0.0], [5.0, 5.0]])
    true = torch.tensor([[30.0, 40.0], [0.0, 2.0], [-1.0, -1.0]])
    assert cosine_similarity(found, true) == pytest.approx((1 + 0 - 1) / 3)
    present = torch.tensor([True, True, False])
    assert cosine_similarity(found, true, present) == pytest.approx(1 / 2)


def test_cosine_similarity_ignores_rows_of_absent_classes():
    found, true = torch.eye(2), torch.tensor([[1.0, 0.0], [math.nan, math.inf]])
    assert cosine_similarity(found, true, torch.tensor([True, False])) == 1


def test_a_vector_without_direction_is_similar_to_nothing():
    assert cosine_similarity(torch.zeros(1, 3), torch.ones(1, 3)) == 0


@given(st.integers(0, 2**32), st.floats(1e-30, 1e30), st.integers(1, 5), st.integers(1, 6))
def test_cosine_similarity_agrees_with_a_loop_at_any_scale(seed, scale, classes, features):
    generator = torch.Generator().manual_seed(seed)
    found, true = torch.randn(2, classes, features, generator=generator, dtype=torch.float64)
    present = torch.rand(classes, generator=generator) < 0.7
    assume(present.any())
    cosines = [
        sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
        for a, b, there in zip(found.tolist(), true.tolist(), present.tolist(), strict=True)
        if there
    ]
    computed = cosine_similarity(scale * found, true, present)
    assert computed == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "present", "message"),
    [
        ((2, 4), None, r"\(2, 3\) and \(2, 4\): two matrices"),
        ((3, 3), None, "of one shape"),
        ((2, 3), torch.zeros(2, dtype=torch.bool), "no class"),
        ((2, 3), torch.ones(3, dtype=torch.bool), "for each of the 2 classes"),
        ((2, 3), torch.tensor([0, 1]), "torch.int64: one bool"),
    ],
)
def test_cosine_similarity_refuses_what_does_not_fit(shape, present, message, unchecked):
    with pytest.raises(ValueError, match=message):
        cosine_similarity(torch.ones(2, 3), torch.ones(shape), present)
