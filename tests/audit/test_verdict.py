import pytest
import torch

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
    assert judge(found, score(found, TRUTH), threshold)[0] is verdict


MISFIT = (Flag.LABELS_DO_NOT_FIT,)


@pytest.mark.parametrize(
    ("counts", "certified", "threshold", "verdict", "reason"),
    [
        # The score is of labels that were not trained on.
        (TWO_WRONG, False, None, Verdict.INCONCLUSIVE, "there is no score to judge by"),
        (TWO_WRONG, False, 1.0, Verdict.INCONCLUSIVE, "there is no score to judge by"),
        (TWO_WRONG, False, 0.5, Verdict.OVER_THRESHOLD, "66.7% of the labels given, above 50.0%"),
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
    judged, text = judge(found, score(found, TRUTH), threshold)
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
        (restored(RIGHT), "ilrg restored 6 labels of 3 classes, not compared with true ones"),
        (
            restored([0, 1, 0, 0], present=[1], certified=True),
            "ilrg restored 1 label of 1 class, and they are proven: they rebuild the gradient",
        ),
        (
            restored(proportions=torch.tensor([0.3, 0.2, 0.0, 0.5])),
            "ilrg restored the share of each: 3 classes, not compared with true labels",
        ),
        (
            restored(present=[2]),
            "ilrg restored which classes are present: 1 class, not compared with true labels",
        ),
    ],
)
def test_without_true_labels_the_reason_says_what_there_is(found, reason):
    assert judge(found, None, None) == (
        Verdict.AUDITED,
        f"{reason}; no verdict of an audit is proof of safety",
    )


def test_a_doubt_is_the_reason_where_there_are_no_true_labels():
    verdict, reason = judge(restored(RIGHT, flags=DOUBTFUL), None, None)
    assert verdict is Verdict.INCONCLUSIVE
    assert reason == f"the restored labels are not to be relied on: {Flag.SUMS_NOT_ZERO.text}"


@pytest.mark.parametrize(
    ("counts", "flags", "threshold", "reason"),
    [
        (RIGHT, (), None, "ilrg restored 100.0% of the labels; no threshold was given to judge"),
        (RIGHT, (), 0.5, "ilrg restored 100.0% of the labels, above 50.0%"),
        (TWO_WRONG, (), 0.7, "ilrg restored 66.7% of the labels, at or under 70.0%; a stronger"),
        (TWO_WRONG, DOUBTFUL, 0.7, "this attack's failure proves nothing here: the gradient does"),
        (TWO_WRONG, DOUBTFUL, None, "66.7% of the labels, and is not to be relied on: the gradi"),
        (SET, (), 0.5, "ilrg restored no counts here, so there is no accuracy to compare"),
    ],
)
def test_no_reason_reads_like_a_promise(counts, flags, threshold, reason):
    found = restored(counts, flags=flags)
    assert reason in judge(found, score(found, TRUTH), threshold)[1]
