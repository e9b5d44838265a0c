import dataclasses

import pytest

from labelleak.metrics import Score
from labelleak.report.text import MEANINGS, SCORES, class_rows, number


def test_every_field_of_a_score_has_a_title_and_a_meaning():
    assert set(SCORES) == set(MEANINGS) == {field.name for field in dataclasses.fields(Score)}


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (None, {}, "-"),
        (True, {}, "yes"),
        (False, {}, "no"),
        (0.12345, {}, "0.123"),
        (1, {}, "1.000"),
        (-0.25, {}, "-0.250"),
        (0.25, {"signed": True}, "+0.250"),
        (-0.0004, {"signed": True}, "0.000"),
        (1.7234e-11, {"fixed": False}, "1.72e-11"),
        (-9.64e-5, {"fixed": False, "signed": True}, "-9.6e-5"),
        (155, {"fixed": False}, "155"),
        (0, {"fixed": False}, "0"),
    ],
)
def test_numbers(value, style, text):
    assert number(value, **style) == text


def record(classes=4, **changes):
    empty = {"true_counts": None, "counts": None, "proportions": None, "present": [1, 3]}
    return {"classes": classes} | empty | changes


def test_counts_stand_beside_the_true_ones():
    rows = class_rows(record(counts=[0, 2, 0, 1], true_counts=[0, 1, 1, 1]))
    assert [(row["true"], row["restored"]) for row in rows] == [(0, 0), (1, 2), (1, 0), (1, 1)]
    assert [row["text"] for row in rows] == ["0", "2", "0", "1"]
    assert [row["wrong"] for row in rows] == [False, True, True, False]


def test_shares_and_sets_are_words():
    shares = class_rows(record(proportions=[0.0, 0.25, 0.0, 0.75], true_counts=[0, 1, 0, 3]))
    assert [row["text"] for row in shares] == ["0.0%", "25.0%", "0.0%", "75.0%"]
    assert not any(row["wrong"] for row in shares)
    assert [row["text"] for row in class_rows(record())] == ["-", "present", "-", "present"]


def test_of_many_classes_only_those_that_are_true_or_restored_have_a_row():
    true = [0] * 21
    true[20] = 1
    rows = class_rows(record(classes=21, counts=[0, 2, 0, 1] + [0] * 17, true_counts=true))
    assert [row["label"] for row in rows] == [1, 3, 20]
    assert len(class_rows(record(classes=20, present=[]))) == 20
