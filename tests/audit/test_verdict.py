from dataclasses import replace

import pytest
import torch

from labelleak.audit.expected import expected_score
from labelleak.audit.rule import Rule
from labelleak.audit.verdict import Verdict, judge
from labelleak.metrics import score
from labelleak.restoration import Flag, Restoration

TRUTH = torch.tensor([2, 1, 0, 3])
DOUBTFUL = (Flag.SUMS_NOT_ZERO,)


def restored(counts=None, *, present=(0, 1, 3), **fields):
    there = torch.zeros(4, dtype=torch.bool)
    there[list(present)] = True
    told = None if counts is None else torch.tensor(counts)
    return Restoration(present=there, counts=told, attack="ilrg", **fields)


RIGHT, TWO_WRONG, SET = [2, 1, 0, 3], [0, 1, 2, 3], None


@pytest.mark.parametrize(
    ("counts", "flags", "threshold", "verdict"),
    [
        (RIGHT, (), None, Verdict.AUDITED),
        (RIGHT, DOUBTFUL, None, Verdict.INCONCLUSIVE),
        (RIGHT, (), 1.0, Verdict.AUDITED),
        (RIGHT, (), 0.99, Verdict.OVER_THRESHOLD),
        # What was restored was restored, whatever the flags say.
        (RIGHT, DOUBTFUL, 0.99, Verdict.OVER_THRESHOLD),
        (TWO_WRONG, (), 0.7, Verdict.AUDITED),
        (TWO_WRONG, DOUBTFUL, 0.7, Verdict.INCONCLUSIVE),
        (SET, (), None, Verdict.AUDITED),
        (SET, (), 0.5, Verdict.INCONCLUSIVE),
        # A flag that makes nothing unreliable.
        (RIGHT, (Flag.NO_BIAS,), None, Verdict.AUDITED),
    ],
)
def test_a_low_score_is_no_evidence_under_a_doubt_and_a_high_one_is(
    counts, flags, threshold, verdict
):
    found = restored(counts, flags=flags)
    assert judge(found, score(found, TRUTH), Rule("accuracy", threshold))[0] is verdict


MISFIT = (Flag.LABELS_DO_NOT_FIT,)


@pytest.mark.parametrize(
    ("counts", "certified", "threshold", "verdict", "reason"),
    [
        # The score is of labels that were not trained on.
        (TWO_WRONG, False, None, Verdict.INCONCLUSIVE, "there is no score to judge by"),
        (TWO_WRONG, False, 1.0, Verdict.INCONCLUSIVE, "there is no score to judge by"),
        (
            TWO_WRONG,
            False,
            0.5,
            Verdict.OVER_THRESHOLD,
            "66.7% of the labels given, above the limit of 50.0%",
        ),
        # All that was trained on is proven, whatever the score.
        (TWO_WRONG, True, 0.9, Verdict.OVER_THRESHOLD, "all labels that were trained on"),
        (TWO_WRONG, True, 1.0, Verdict.INCONCLUSIVE, "there is no score to judge by"),
        (TWO_WRONG, True, None, Verdict.INCONCLUSIVE, "there is no score to judge by"),
    ],
)
@pytest.mark.parametrize("flags", [MISFIT, (*DOUBTFUL, *MISFIT)])
def test_labels_that_do_not_fit_are_never_within(
    counts, certified, threshold, verdict, reason, flags
):
    found = restored(counts, certified=certified, flags=flags)
    judged, text = judge(found, score(found, TRUTH), Rule("accuracy", threshold))
    assert judged is verdict
    assert reason in text
    assert "contradict the labels" in text


def test_only_an_accuracy_over_the_threshold_ends_with_one():
    statuses = {verdict: verdict.exit_status for verdict in Verdict}
    assert statuses == {
        Verdict.AUDITED: 0,
        Verdict.OVER_THRESHOLD: 1,
        Verdict.INCONCLUSIVE: 3,
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            restored(RIGHT),
            "attack ilrg restored 6 labels of 3 classes, not compared with true ones",
        ),
        (
            restored([0, 1, 0, 0], present=[1], certified=True),
            "attack ilrg restored 1 label of 1 class, and they are proven: they rebuild the "
            "gradient",
        ),
        (
            restored(RIGHT, flags=(Flag.UNKNOWN_BATCH_SIZE,)),
            "attack ilrg restored 6 labels of 3 classes, or each of them equally often, not "
            "compared with true ones",
        ),
        (
            restored(proportions=torch.tensor([0.3, 0.2, 0.0, 0.5])),
            "attack ilrg restored the share of each: 3 classes, not compared with true labels",
        ),
        (
            restored(present=[2]),
            "attack ilrg restored which classes are present: 1 class, not compared with true "
            "labels",
        ),
    ],
)
def test_without_true_labels_the_reason_says_what_there_is(found, reason):
    assert judge(found, None, Rule()) == (
        Verdict.AUDITED,
        f"{reason}; no verdict of an audit is proof of safety",
    )


def test_labels_that_no_sample_has_are_no_pass():
    found = replace(restored([0, 0, 0, 0]), multi_label=True, samples=6)
    verdict, reason = judge(found, None, Rule("exact"), hidden=4)
    assert verdict is Verdict.INCONCLUSIVE
    assert "no sample has a label" in reason
    assert judge(found, None, Rule("exact"))[0] is Verdict.AUDITED


def test_a_doubt_is_the_reason_where_there_are_no_true_labels():
    verdict, reason = judge(restored(RIGHT, flags=DOUBTFUL), None, Rule())
    assert verdict is Verdict.INCONCLUSIVE
    assert reason.endswith("that is not to be relied on (flag sums_not_zero)")


@pytest.mark.parametrize(
    ("counts", "flags", "threshold", "reason"),
    [
        (RIGHT, (), None, "no limit was set, so this is a finding, not a pass or a failure"),
        (
            RIGHT,
            (),
            0.5,
            "100.0% of the labels (a guess without the update gets 66.7%), above the limit",
        ),
        (
            TWO_WRONG,
            (),
            0.7,
            "ilrg restored 66.7% of the labels (a guess without the update gets 66.7%), at",
        ),
        (TWO_WRONG, (), 0.7, "at or under the limit of 70.0%; a stronger attack may"),
        (TWO_WRONG, DOUBTFUL, 0.7, "failure proves nothing here (flag sums_not_zero)"),
        (TWO_WRONG, DOUBTFUL, None, "that is not to be relied on (flag sums_not_zero)"),
        (SET, (), 0.5, "ilrg restored no counts here, and so has no score"),
    ],
)
def test_no_reason_reads_like_a_promise(counts, flags, threshold, reason):
    found = restored(counts, flags=flags)
    assert reason in judge(found, score(found, TRUTH), Rule("accuracy", threshold))[1]


@pytest.mark.parametrize(
    ("counts", "threshold", "verdict"),
    [
        # Two of each of four classes or one less: the guess has 1 + 1 + 0 + 1.5 of 6 labels.
        (RIGHT, 0.99, Verdict.OVER_THRESHOLD),
        (RIGHT, 1.0, Verdict.AUDITED),
        ([2, 2, 0, 2], 0.5, Verdict.OVER_THRESHOLD),
        ([2, 2, 0, 2], 0.6, Verdict.AUDITED),
        # A guess is no advantage, whatever its accuracy.
        ([2, 2, 1, 1], 0.0, Verdict.AUDITED),
    ],
)
def test_an_advantage_is_what_a_guess_leaves_open(counts, threshold, verdict):
    found = restored(counts)
    scored = score(found, TRUTH)
    assert scored.guess == pytest.approx((1.5 + 1 + 0 + 1.5) / 6)
    assert judge(found, scored, Rule("advantage", threshold))[0] is verdict


def test_a_limit_of_accuracy_is_not_told_beside_the_advantage():
    found = restored(RIGHT)
    scored = score(found, TRUTH)
    told = "100.0% of what the guess leaves open"
    assert f"{told}, above" in judge(found, scored, Rule("advantage", 0.5))[1]
    assert told not in judge(found, scored, Rule("accuracy", 0.5))[1]


def test_even_counts_that_are_proven_are_over_though_a_guess_has_them_too():
    even = torch.tensor([2, 2, 2, 2])
    for certified, limit, verdict in (
        (True, 0.5, Verdict.OVER_THRESHOLD),
        (True, 1.0, Verdict.AUDITED),
        (False, 0.5, Verdict.AUDITED),
    ):
        found = restored(even.tolist(), present=(0, 1, 2, 3), certified=certified)
        scored = score(found, even)
        assert scored.relative_advantage == 0.0
        assert judge(found, scored, Rule("advantage", limit))[0] is verdict


def test_all_counts_right_is_over_where_that_is_the_rule():
    for counts, verdict in ((RIGHT, Verdict.OVER_THRESHOLD), (TWO_WRONG, Verdict.AUDITED)):
        found = restored(counts)
        assert judge(found, score(found, TRUTH), Rule("exact"))[0] is verdict


CELLS = Rule("small-cells", floor=4)


def estimated(errors, flags=()):
    """Right counts of TRUTH, with a standard error for each."""
    raw, errors = TRUTH.double(), torch.tensor(errors).double()
    return restored(RIGHT, raw=raw, standard_errors=errors, flags=flags)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        # Intervals of 3 +- 0.2, and of others that reach below one or above three.
        (estimated([1.5, 1.0, 1.0, 0.1]), Verdict.OVER_THRESHOLD, "that 1 of the 4 classes"),
        (estimated([1.5, 1.0, 1.0, 0.6]), Verdict.AUDITED, "tells none of the 4"),
        # That nobody is in a class is told as well.
        (estimated([1.5, 1.0, 0.2, 0.6]), Verdict.OVER_THRESHOLD, "that 1 of"),
        (estimated([1.5] * 4, DOUBTFUL), Verdict.INCONCLUSIVE, "(flag sums_not_zero)"),
        (estimated([1.5] * 4, (Flag.COUNTS_NOT_SURE,)), Verdict.AUDITED, "tells none"),
        (restored(RIGHT), Verdict.INCONCLUSIVE, "gives no errors"),
        (
            restored(RIGHT, certified=True),
            Verdict.OVER_THRESHOLD,
            "that all 4 classes that the rule hides",
        ),
        (restored(SET), Verdict.INCONCLUSIVE, "gives no errors"),
        (restored(TWO_WRONG, certified=True, flags=MISFIT), Verdict.OVER_THRESHOLD, "is proven"),
    ],
)
def test_small_cells_are_told_by_intervals_or_a_proof(found, verdict, words):
    judged, reason = judge(found, score(found, TRUTH, floor=4), CELLS, hidden=4)
    assert judged is verdict
    assert words in reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (0.1, "ilrg tells with confidence that the one class that the rule hides (fewer than"),
        (9.0, "ilrg tells nothing of the one class that the rule hides (fewer than"),
        (None, "nobody can say what it tells of the one class that the rule hides (fewer than"),
    ],
)
def test_one_hidden_class_is_no_plural(error, words):
    counts = torch.tensor([2, 10, 10, 30])
    errors = None if error is None else torch.full((4,), error, dtype=torch.float64)
    found = restored(counts.tolist(), present=range(4), raw=counts.double(), standard_errors=errors)
    assert words in judge(found, score(found, counts, floor=4), CELLS, hidden=1)[1]


LATE = (Flag.TIME_LIMIT,)


@pytest.mark.parametrize(
    ("found", "rule", "labels", "verdict"),
    [
        # What a search has found stands if the attack knows its errors, or has a proof.
        (estimated([0.1] * 4, LATE), Rule(), True, Verdict.AUDITED),
        (estimated([0.1] * 4, LATE), Rule(), False, Verdict.AUDITED),
        (estimated([0.1] * 4, LATE), CELLS, False, Verdict.OVER_THRESHOLD),
        (restored(RIGHT, certified=True, flags=LATE), Rule(), True, Verdict.AUDITED),
        (restored(RIGHT, flags=LATE), Rule(), True, Verdict.INCONCLUSIVE),
        (estimated([0.1] * 4, (*LATE, *DOUBTFUL)), Rule(), True, Verdict.INCONCLUSIVE),
        # What it has missed proves nothing.
        (estimated([2.0] * 4, LATE), CELLS, False, Verdict.INCONCLUSIVE),
        (estimated([1.5] * 4, LATE), CELLS, True, Verdict.INCONCLUSIVE),
        (estimated([0.1] * 4, LATE), Rule("accuracy", 1.0), True, Verdict.INCONCLUSIVE),
        (estimated([0.1] * 4, LATE), Rule("exact"), False, Verdict.INCONCLUSIVE),
    ],
)
def test_a_time_limit_doubts_what_was_missed_and_not_what_was_found(found, rule, labels, verdict):
    scored = score(found, TRUTH, floor=4) if labels else None
    hidden = 4 if labels else None
    assert judge(found, scored, rule, hidden=hidden)[0] is verdict


def test_where_all_classes_are_large_there_is_nothing_to_hide():
    found = restored(RIGHT)
    assert judge(found, score(found, TRUTH + 10), CELLS, hidden=0)[0] is Verdict.AUDITED


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        (Rule("exact"), Verdict.OVER_THRESHOLD),
        (Rule("small-cells"), Verdict.OVER_THRESHOLD),
        (Rule("advantage", 0.5), Verdict.OVER_THRESHOLD),
        (Rule("accuracy", 1.0), Verdict.INCONCLUSIVE),
        (Rule(), Verdict.AUDITED),
    ],
)
def test_a_proof_needs_no_labels_to_be_over(rule, verdict):
    found = restored(RIGHT, certified=True)
    assert judge(found, None, rule, expected=expected_score(found))[0] is verdict


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (estimated([0.1] * 4), Verdict.OVER_THRESHOLD, "tells 4 classes"),
        (estimated([2.0] * 4), Verdict.AUDITED, "tells no classes"),
        (estimated([0.1] * 4, DOUBTFUL), Verdict.INCONCLUSIVE, "not to be relied on"),
        (restored(RIGHT), Verdict.INCONCLUSIVE, "gives no errors"),
    ],
)
def test_without_labels_small_cells_go_by_the_errors(found, verdict, words):
    judged, reason = judge(found, None, CELLS, expected=expected_score(found, floor=4))
    assert judged is verdict
    assert words in reason


def test_without_labels_a_share_cannot_be_measured_and_is_expected():
    found = estimated([0.5] * 4)
    judged, reason = judge(found, None, Rule("advantage", 0.5), expected=expected_score(found))
    assert judged is Verdict.INCONCLUSIVE
    assert "by the attack's own standard errors 86.7% of them are expected to be right" in reason
