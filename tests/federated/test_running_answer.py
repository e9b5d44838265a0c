"""What the rounds of a run tell together, from records that may be cut off, mixed or forged."""

import json

import pytest
import torch

from labelleak import Restoration, combine
from labelleak.audit.record import AuditRecord
from labelleak.audit.rule import Rule
from labelleak.federated import Occasion, Policy, RoundRecord, RunningAnswer, append_record
from labelleak.federated.running_answer import in_all, running_answer
from labelleak.projection import project_to_counts
from labelleak.restoration import NORMAL_QUANTILE

TRUE = [40, 5, 0, 15]
RULE = Rule(threshold=0.9)
FIRST, SECOND = [41.0, 5.0, 0.0, 14.0], [38.0, 6.0, 1.0, 15.0]


def made(raw, error, *, true=TRUE, flags=(), **changes):
    """An audit as it is written down, of these counts with one standard error for all."""
    raw = torch.tensor(raw, dtype=torch.float64)
    margin = NORMAL_QUANTILE * error
    values = {
        "attack": "virtual",
        "classes": len(raw),
        "features": 8,
        "head": "fc",
        "batch_size": 20,
        "local_steps": 3,
        "present": [0],
        "counts": project_to_counts(raw, 60).tolist(),
        "rounded": None,
        "proportions": None,
        "certified": False,
        "flags": [{"name": name, "text": ""} for name in flags],
        "true_counts": true,
        "score": None,
        "score_rounded": None,
        "threshold": None,
        "verdict": "audited",
        "reason": "",
        "seconds": 0.1,
        "intervals": [[value - margin, value + margin] for value in raw.tolist()],
        "samples": 60,
    }
    return AuditRecord(**{**values, **changes})


def write(folder, number, audit, client="a", **fields):
    values = {"label": "", "framework": "", "action": "sent", "verdict": "within", "reason": ""}
    audit = None if audit is None else audit.as_dict()
    append_record(
        folder,
        RoundRecord(number, client, policy=Policy().as_dict(), audit=audit, **{**values, **fields}),
    )


def answer(folder, audit, number=2, rule=RULE):
    return running_answer(folder, Occasion(number, "a"), audit, rule)


def restoration(raw, error):
    raw = torch.tensor(raw, dtype=torch.float64)
    counts = project_to_counts(raw, 60)
    return Restoration(counts > 0, counts, raw=raw, standard_errors=torch.full_like(raw, error))


def test_rounds_are_combined_and_scored(tmp_path):
    write(tmp_path, 1, made(FIRST, 1.0))
    found = answer(tmp_path, made(SECOND, 1.5))
    known = combine([restoration(FIRST, 1.0), restoration(SECOND, 1.5)])
    assert found.counts == known.counts.tolist()
    torch.testing.assert_close(torch.tensor(found.intervals).double(), known.intervals)
    wrong = sum(abs(one - other) for one, other in zip(found.counts, TRUE, strict=True)) / 2
    assert found.score["accuracy"] == pytest.approx(1 - wrong / 60)
    assert (found.rounds, found.left_out, found.verdict) == ([1, 2], [], "over")
    assert found.reason.startswith("rounds 1 and 2 together: their combination restored ")
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_round_that_is_written_down_twice_counts_once(tmp_path):
    write(tmp_path, 1, made(FIRST, 1.0))
    once = answer(tmp_path, made(SECOND, 1.5))
    write(tmp_path, 1, made(FIRST, 1.0))
    write(tmp_path, 2, made(FIRST, 1.0))
    again = answer(tmp_path, made(SECOND, 1.5))
    assert (again.rounds, again.intervals) == (once.rounds, once.intervals)


def test_the_first_round_is_known_alone(tmp_path):
    found = answer(tmp_path, made(FIRST, 1.0), number=1)
    assert found.counts == [41, 5, 0, 14]
    assert found.reason.startswith("round 1 alone: ")


def test_without_labels_it_says_what_the_errors_say(tmp_path):
    write(tmp_path, 1, made(FIRST, 1.0, true=None))
    found = answer(tmp_path, made(SECOND, 1.5, true=None))
    assert found.score is None
    assert found.expected["by"] == "intervals"


@pytest.mark.parametrize(
    "fields",
    [{"run": "other"}, {"label": "before noise"}, {"framework": "nvflare"}, {"task": "evaluate"}],
    ids=str,
)
def test_rounds_of_something_else_are_not_counted(tmp_path, fields):
    write(tmp_path, 1, made(FIRST, 1.0), **fields)
    assert answer(tmp_path, made(SECOND, 1.5)).rounds == [2]


def test_what_was_refused_is_not_known(tmp_path):
    write(tmp_path, 1, made(FIRST, 0.1), action="refused")
    found = answer(tmp_path, made(SECOND, 1.5))
    assert (found.rounds, found.left_out) == ([2], [])


@pytest.mark.parametrize(
    ("audit", "why"),
    [
        (None, "no audit"),
        (made(FIRST, 1.0, true=[39, 6, 0, 15]), "other data, by the labels"),
        (made([*FIRST, 0.0], 1.0, true=None), "other data, by their number"),
        (made(FIRST, 1.0, samples=61), "other data, by their number"),
        (made(FIRST, 1.0, intervals=None), "no counts with standard errors"),
        (made(FIRST, 1.0, flags=["labels_do_not_fit"]), "contradicts the labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_round_that_was_sent_and_left_out_keeps_all_from_being_within(tmp_path, audit, why):
    write(tmp_path, 1, audit)
    found = answer(tmp_path, made(TRUE, 0.01), rule=Rule(threshold=1.0))
    assert found.rounds == [2]
    assert found.left_out[0]["round"] == 1
    assert why in found.left_out[0]["why"]
    assert found.verdict == "inconclusive"
    assert "left out are round 1" in found.reason
    # What is too much is too much whatever was left out.
    assert answer(tmp_path, made(TRUE, 0.01)).verdict == "over"


def test_all_rounds_at_hand_can_be_within(tmp_path):
    write(tmp_path, 1, made(TRUE, 0.01))
    assert answer(tmp_path, made(TRUE, 0.01), rule=Rule(threshold=1.0)).verdict == "within"


def test_without_errors_nothing_is_known_in_all(tmp_path):
    write(tmp_path, 1, made(FIRST, 1.0, intervals=None))
    found = answer(tmp_path, made(SECOND, 1.0, intervals=None))
    assert (found.verdict, found.counts, found.rounds) == ("inconclusive", None, [])
    assert "no round can be combined" in found.reason


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: is no record"),
        ("another", "line 2: is a record of another client"),
        ("counts", "counts are no whole numbers"),
        ("intervals", "ends before it begins"),
        ("proven", "proven counts differ"),
    ],
)
def test_records_that_are_forged_or_mixed_fail_closed_in_one_line(tmp_path, line, why):
    write(tmp_path, 1, made(FIRST, 1.0))
    (path,) = tmp_path.glob("*.jsonl")
    record = json.loads(path.read_text())
    now = made(FIRST, 1.0)
    if line == "another":
        record["client"] = "b"
    elif line == "counts":
        record["audit"]["counts"] = [60, 0, 0, "0"]
    elif line == "intervals":
        record["audit"]["intervals"][0] = [9.0, 1.0]
    elif line == "proven":
        record["audit"] |= {"certified": True}
        now = made(TRUE, 1.0, certified=True)
    added = "{" if line == "{" else json.dumps(record)
    path.write_text(f"{path.read_text()}{added}\n")
    found = answer(tmp_path, now)
    assert found.verdict == "failed"
    assert why in found.reason
    assert "\n" not in found.reason
    assert found.counts is None


@pytest.mark.parametrize(
    ("alone", "together", "expected"),
    [
        ("within", "over", "over"),
        ("within", "inconclusive", "inconclusive"),
        ("within", "failed", "failed"),
        ("over", "failed", "over"),
        ("inconclusive", "within", "inconclusive"),
        ("within", "within", "within"),
    ],
)
def test_the_graver_verdict_holds(alone, together, expected):
    verdict, reason = in_all(alone, "alone", RunningAnswer(together, "together"))
    assert verdict == expected
    assert reason == ("together" if expected != alone else "alone")


def test_what_is_not_combined_is_not_within():
    assert in_all("within", "alone", None)[0] == "inconclusive"
