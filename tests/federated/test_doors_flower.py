"""A Flower app that wants more out than the policy allows: every door is shut, and written down."""

import json

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from flower_doors import BYTES, HARMLESS, OTHERS, SECRET, TRAIN, plain
from flower_in_process import (
    RATE,
    SAMPLES,
    context,
    instruction,
    made_policy,
    made_update,
    wire,
)
from labelleak.federated import read_rounds
from labelleak.federated.flower import REFUSED, LeakageAudit, provide_labels

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def update():
    return made_update(ids=torch.arange(4), mask=torch.ones(4, dtype=torch.bool))


@pytest.fixture
def refusing(tmp_path):
    """A policy that sends every update, so that what is hidden decides alone."""
    return made_policy(tmp_path, "refuse", threshold=1.0)


def left_of(policy, update, make, kind="train"):
    found, labels = update

    def app(message, _):
        provide_labels(labels)
        return make(message, found.after)

    message = instruction(found.before, kind, lr=RATE, server_round=3)
    return LeakageAudit(policy)(message, context(batch_size=SAMPLES), app)


def last_record(tmp_path):
    return read_rounds(tmp_path / "r")[-1]


def assert_nothing_hidden(message):
    sent = wire(message)
    assert not any(secret in sent for secret in BYTES)


def test_the_update_itself_is_within_the_policy(update, refusing, tmp_path):
    left = left_of(refusing, update, plain)
    assert dict(left.content["metrics"]) == {"num-examples": SAMPLES, "loss": 0.5}
    record = last_record(tmp_path)
    assert (record["verdict"], record["action"], record["unaudited"]) == ("within", "sent", [])


@pytest.mark.parametrize("door", TRAIN)
def test_no_door_of_a_train_reply_is_open(update, refusing, tmp_path, door):
    left = left_of(refusing, update, TRAIN[door])
    assert left.has_error()
    assert not left.has_content()
    assert_nothing_hidden(left)
    record = last_record(tmp_path)
    assert (record["action"], record["verdict"]) == ("refused", "failed")
    assert record["error"]


@pytest.mark.parametrize("door", HARMLESS)
def test_what_is_hung_on_to_a_reply_does_not_leave(update, refusing, tmp_path, door):
    left = left_of(refusing, update, HARMLESS[door])
    assert_nothing_hidden(left)
    if left.has_error():
        assert left.error.code in (0, 2, REFUSED)
        assert last_record(tmp_path)["action"] == "refused"


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.again"])
@pytest.mark.parametrize("door", OTHERS)
def test_no_door_of_another_reply_is_open(update, refusing, tmp_path, door, kind):
    left = left_of(refusing, update, OTHERS[door], kind)
    assert left.error.code == REFUSED
    assert_nothing_hidden(left)
    record = last_record(tmp_path)
    assert (record["action"], record["task"]) == ("refused", kind)
    assert record["unaudited"]


@pytest.mark.parametrize("kind", ["evaluate", "query"])
@pytest.mark.parametrize("door", ["text of an error", "text of an exception"])
def test_errors_lose_their_text_whatever_was_asked(update, refusing, tmp_path, door, kind):
    left = left_of(refusing, update, HARMLESS[door], kind)
    assert left.error.code == 2
    assert_nothing_hidden(left)
    assert SECRET in last_record(tmp_path)["error"]


@pytest.mark.parametrize("action", ["record", "warn"])
@pytest.mark.parametrize(
    "door", ["text in a configuration", "bytes after the numbers", "a counter"]
)
def test_other_policies_send_it_and_write_it_down(update, tmp_path, door, action):
    made = []

    def make(message, after):
        made.append(TRAIN[door](message, after))
        return made[0]

    left = left_of(made_policy(tmp_path, action, threshold=1.0), update, make)
    assert left is made[0]
    record = last_record(tmp_path)
    assert record["verdict"] == "failed"
    assert record["action"] == {"record": "sent", "warn": "warned"}[action]
    assert record["error"]


def test_a_record_names_what_it_found(update, refusing, tmp_path):
    left_of(refusing, update, TRAIN["weights as a list of metrics"])
    assert last_record(tmp_path)["unaudited"] == [
        "c/x (a list of 50 numbers)",
        "52 numbers where 32 are allowed",
    ]
    left_of(refusing, update, TRAIN["bytes after the numbers"])
    assert last_record(tmp_path)["unaudited"] == ["arrays/fc.bias (bytes after its numbers)"]


def test_names_in_a_record_are_short_and_printable(update, refusing, tmp_path):
    odd = "\x1b[31m\n" + "x" * 10_000
    left_of(refusing, update, lambda m, a: plain(m, a, c=MetricRecord({odd: 1.0})))
    (entry,) = last_record(tmp_path)["unaudited"]
    assert len(entry) < 120
    assert json.loads(json.dumps(entry)).isprintable()


PASSING = {
    "the quick start": {"train_loss": 0.3, "num-examples": SAMPLES},
    "validation": {"val-loss": 0.3, "val_accuracy": 0.9, "num-examples": SAMPLES, "epochs": 2},
    "other measures": {"loss": 1.0, "macro_f1": 0.5, "top5_accuracy": 0.9, "AUC": 0.7},
    "NaN and infinity": {"loss": float("nan"), "eval-loss": float("inf")},
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("metrics", PASSING)
def test_ordinary_replies_pass(update, refusing, tmp_path, metrics, kind):
    def make(message, after):
        records = {"metrics": MetricRecord(dict(PASSING[metrics]))}
        if kind == "train":
            records["arrays"] = ArrayRecord(after)
        return Message(RecordDict(records), reply_to=message)

    left = left_of(refusing, update, make, kind)
    assert left.has_content()
    assert repr(dict(left.content["metrics"])) == repr(PASSING[metrics])


def test_replies_of_older_clients_pass(update, refusing, tmp_path):
    """As `NumPyClient` makes them of what an app returns."""

    def make(message, _):
        state = ConfigRecord({"code": 0, "message": "Success"})
        records = {
            "evaluateres.loss": MetricRecord({"loss": 0.5}),
            "evaluateres.num_examples": MetricRecord({"num_examples": SAMPLES}),
            "evaluateres.metrics": ConfigRecord({"accuracy": 0.5}),
            "evaluateres.status": state,
        }
        return Message(RecordDict(records), reply_to=message)

    assert left_of(refusing, update, make, "evaluate").has_content()
