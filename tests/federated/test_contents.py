"""What a message holds beside its weights: doors of each framework are in files of their own."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.federated.allow import Allow
from labelleak.federated.contents import BY_CLASS, Unreadable, is_number, look_at, shown

ALLOW = Allow(numbers=("loss", "acc*", "num_examples"), lists={"auc": 3}, texts={"status": 8})


def unaudited(tree, allow=ALLOW, **options):
    return look_at(tree, allow, **options).unaudited


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"metrics": {}},
        {"metrics": {"loss": 0.5, "acc": True, "num-examples": 3}},
        {"metrics": OrderedDict(loss=np.float32(0.5)), "more": {"deep": {"loss": math.nan}}},
        {"auc": [0.5, 1, np.int64(2)], "status": "well"},
        {"loss": None},
    ],
)
def test_what_is_allowed(tree):
    assert unaudited(tree) == ()


@pytest.mark.parametrize(
    ("tree", "entry"),
    [
        ({"m": {"other": 3}}, "m/other (a number)"),
        ({"other": None}, "other (a number)"),
        ({"loss": "low"}, "loss (a text of 3 letters)"),
        ({"loss": [1]}, "loss (a list of 1 numbers)"),
        ({"auc": [1, 2, 3, 4]}, "auc (a list of 4 numbers)"),
        ({"auc": [1, "a"]}, "auc (a list of 2 entries that are no plain numbers)"),
        ({"labels": []}, "labels (a list of 0 numbers)"),
        ({"labels": ""}, "labels (a text of 0 letters)"),
        ({"status": "x" * 9}, "status (a text of 9 letters)"),
        ({"loss": b"abc"}, "loss (3 bytes)"),
        ({"loss": 2**64}, "loss (a number of more than 64 bits)"),
        ({"loss": torch.zeros(())}, "loss (a value of type Tensor)"),
        ({"loss": Unreadable("an array")}, "loss (an array)"),
        ({3: 1.0}, "3 (its name is no text)"),
        ({"a b": {"loss": 1}}, "a b/loss (a table's name is too long or not plain)"),
        ({"x" * 25: {}}, f"{'x' * 25} (a table's name is not plain)"),
        ({"a": {"b": {"c": {"d": {"e": {"loss": 1}}}}}}, "a/b/c/d/e (nested too deep)"),
    ],
)
def test_what_is_not_allowed(tree, entry):
    assert unaudited(tree) == (entry,)


def test_the_number_of_numbers_is_limited():
    allow = Allow(numbers=("*",), lists={"auc": 100}, texts={"status": 100}, most=4)
    assert unaudited({"a": 1, "b": 2, "c": 3, "d": 4}, allow) == ()
    assert unaudited(dict.fromkeys("abcde", 1), allow) == ("5 numbers where 4 are allowed",)
    assert unaudited({"auc": [1] * 5}, allow) == ("5 numbers where 4 are allowed",)
    # Eight letters carry as much as a number.
    assert unaudited({"status": "x" * 32}, allow) == ()
    assert unaudited({"status": "x" * 33}, allow) == ("5 numbers where 4 are allowed",)


def test_the_number_of_tables_is_limited():
    names = [f"t{number}" for number in range(9)]
    assert unaudited({name: {"loss": 1} for name in names[:8]}) == ()
    assert unaudited({name: {"loss": 1} for name in names}) == ("9 tables where 8 are allowed",)
    assert unaudited({name: {} for name in names}) == ("9 tables where 8 are allowed",)


def test_a_message_without_end_is_not_read_to_its_end():
    endless = {}
    endless["a"] = endless
    assert "nested too deep" in unaudited(endless)[0]
    found = unaudited({f"x{number}": 1 for number in range(5000)})
    assert len(found) == 21
    assert found[-1] == "1982 more"


def test_the_adapters_problems_come_first():
    found = look_at({"x": 1}, ALLOW, problems=["bytes after the numbers"])
    assert found.unaudited == ("bytes after the numbers", "x (a number)")
    text = "neither audited nor allowed by the policy: bytes after the numbers; x (a number)"
    assert found.problem == text
    assert look_at({}, ALLOW).problem is None


def leaks(tree, classes=None):
    return [(leak.what, leak.where) for leak in look_at(tree, Allow(("*",)), classes).leaks]


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"m": {"accuracy_class_3": 0.5}}, "m/accuracy_class_3"),
        ({"m": {"acc-0": 0.5, "acc-1": 0.2}}, "m/acc-0"),
        ({"m": {"acc.2": 0.5, "acc.7": 0.2, "acc.11": 0.2}}, "m/acc.2"),
        ({"m": {"per_label": 0.5}}, "m/per_label"),
    ],
)
def test_numbers_by_class_are_told(tree, where):
    assert leaks(tree) == [(BY_CLASS, where)]


@pytest.mark.parametrize(
    "tree",
    [
        {"f1": 0.5},
        {"top1_accuracy": 0.5, "top5_accuracy": 0.9},
        {"classification_loss": 0.5},
        {"labelleak_accuracy": 0.5},
    ],
)
def test_other_numbers_are_not_told_as_such(tree):
    assert leaks(tree) == []


def test_lists_by_class_and_classes_without_a_sample():
    allow = Allow(lists={"*": 10})
    (leak,) = look_at({"auc": [0.5, math.nan, 1.0]}, allow, 3).leaks
    assert (leak.what, leak.where) == (BY_CLASS, "auc")
    assert leak.why == "1 of 3 are NaN: those classes have no sample"
    assert look_at({"auc": [0.5, math.nan, 1.0]}, allow, 4).leaks == ()


def test_numbers_of_samples_and_steps_are_told():
    tree = {"m": {"num-examples": 8, "NUM_STEPS_CURRENT_ROUND": 3, "loss": 1}}
    found = look_at(tree, Allow()).leaks
    assert [(leak.what, leak.where) for leak in found] == [
        ("number of local samples", "m/num-examples"),
        ("number of local steps", "m/NUM_STEPS_CURRENT_ROUND"),
    ]


@pytest.mark.usefixtures("unchecked")
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary()
        | st.just(torch.zeros(2)),
        lambda children: st.lists(children) | st.dictionaries(st.text() | st.integers(), children),
        max_leaves=30,
    )
)
def test_nothing_makes_it_raise(value):
    found = look_at({"x": value}, ALLOW, 3)
    assert all(len(entry) < 200 for entry in found.unaudited)
    # Whatever passes is a number, a short text, a short list, or a table of these.
    if not found.unaudited:
        assert isinstance(value, dict)


class Loud(float):
    pass


@pytest.mark.parametrize("value", [1, True, 2**63, -(2**63), 0.5, np.float16(1), np.uint64(3)])
def test_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [2**64, -(2**64), Loud(1), np.longdouble(1), 1j, "1", None])
def test_no_numbers(value):
    assert not is_number(value)


def test_paths_are_short_and_printable():
    assert shown(["metrics", "loss"]) == "metrics/loss"
    assert shown(["a\nb\x1b", 3]) == "a\\nb\\x1b/3"
    assert len(shown(["x" * 1000] * 5)) == 80
