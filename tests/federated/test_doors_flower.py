"""A Flower app that wants more out than the policy allows: every door is shut, and written down."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flower_in_process import (
    RATE,
    SAMPLES,
    context,
    instruction,
    made_policy,
    made_update,
    reply_to,
    wire,
)
from labelleak.federated import read_rounds
from labelleak.federated.flower import REFUSED, LeakageAudit, provide_labels

# An app hides this; in floating-point numbers it is a number that nothing else holds.
SECRET = "the-labels-are-0-0-2-5"
NUMBER = 1234.56789
BYTES = (SECRET.encode(), np.float32(NUMBER).tobytes(), np.float64(NUMBER).tobytes())

pytestmark = pytest.mark.usefixtures("unchecked")


def plain(message, after, **records):
    """An ordinary reply, with more records."""
    reply = reply_to(message, after, num_examples=SAMPLES, loss=0.5)
    for name, record in records.items():
        reply.content[name] = record
    return reply


def with_array(message, after, make):
    """An ordinary reply, one array of which is made of the one that belongs there."""
    arrays = {name: Array(value.numpy()) for name, value in after.items()}
    arrays["fc.bias"] = make(arrays["fc.bias"])
    return plain(message, {}, arrays=ArrayRecord(OrderedDict(arrays)))


def told(array, **fields):
    """An array that says something else of itself."""
    parts = {key: getattr(array, key) for key in ("dtype", "shape", "stype", "data")}
    return Array(**{**parts, **fields})


def changed(message, after, **tensors):
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return plain(message, {**after, **named})


def with_header(array, text):
    """The same numbers behind a header of other text, which NumPy's reader understands, too."""
    text = text.encode() + b"\n"
    begin = array.data.index(b"\n", 10) + 1  # two bytes before the text are its length
    return told(
        array, data=array.data[:8] + len(text).to_bytes(2, "little") + text + array.data[begin:]
    )


def header(array):
    return array.data[10 : array.data.index(b"\n", 10)].decode()


def with_chunks(message, after):
    reply = plain(message, after)
    array = reply.content["arrays"]["fc.bias"]
    chunk = Array(np.full(3, NUMBER)).slice_array()
    array.__dict__["_chunks"] = chunk
    return reply


class Talkative(Array):
    """Its text of itself is not what it holds."""

    @property
    def children(self):
        return dict(Array(np.full(3, NUMBER)).slice_array())


class Later(RecordDict):
    """Holds more at the second look."""

    looks = 0

    def items(self):
        self.looks += 1
        if self.looks > 1:
            self["config"] = ConfigRecord({"labels": SECRET})
        return super().items()


class Loud(float):
    """A number that is more than one."""


def with_metadata(message, after, **values):
    reply = plain(message, after)
    for name, value in values.items():
        reply.metadata.__dict__[f"_{name}"] = value
    return reply


def through_the_request(message, after):
    message.metadata.__dict__["_group_id"] = SECRET
    return plain(message, after)


def raising(*_):
    raise RuntimeError(SECRET)


def both(message, after):
    reply = plain(message, after)
    reply.__dict__["_error"] = Error(2, SECRET)
    return reply


MANY = {f"m{number}_loss": NUMBER for number in range(200)}

TRAIN = {
    "bytes in a configuration": lambda m, a: plain(m, a, c=ConfigRecord({"x": SECRET.encode()})),
    "text in a configuration": lambda m, a: plain(m, a, c=ConfigRecord({"x": SECRET})),
    "texts in a configuration": lambda m, a: plain(m, a, c=ConfigRecord({"x": [SECRET]})),
    "lists of bytes": lambda m, a: plain(m, a, c=ConfigRecord({"x": [SECRET.encode()]})),
    "numbers in a configuration": lambda m, a: plain(m, a, c=ConfigRecord({"x": [NUMBER] * 50})),
    "truth values": lambda m, a: plain(m, a, c=ConfigRecord({"x": [True, False] * 50})),
    "weights as a list of metrics": lambda m, a: plain(m, a, c=MetricRecord({"x": [NUMBER] * 50})),
    "a list under a usual name": lambda m, a: plain(m, a, c=MetricRecord({"loss": [NUMBER] * 50})),
    "weights over many metrics": lambda m, a: plain(m, a, c=MetricRecord(MANY)),
    "one number of another name": lambda m, a: plain(m, a, c=MetricRecord({"class-0": 3})),
    "a text as a name": lambda m, a: plain(m, a, c=MetricRecord({SECRET: 1.0})),
    "a text before a usual name": lambda m, a: plain(m, a, c=MetricRecord({f"{SECRET}/loss": 1.0})),
    "a text in a usual name": lambda m, a: plain(m, a, c=MetricRecord({f"{SECRET}_loss": 1.0})),
    "a text as a record's name": lambda m, a: plain(m, a, **{SECRET + "!": MetricRecord({})}),
    "many records": lambda m, a: plain(
        m, a, **{f"{SECRET[:20]}{n}": MetricRecord({}) for n in range(20)}
    ),
    "a second record of arrays": lambda m, a: plain(
        m, a, more=ArrayRecord({"x": Array(np.full(5, NUMBER))})
    ),
    "a record of arrays named as a metric": lambda m, a: plain(
        m, a, loss=ArrayRecord({"loss": Array(np.full(5, NUMBER))})
    ),
    "an unknown tensor": lambda m, a: changed(m, a, more=torch.full((5,), NUMBER)),
    "a text as a tensor's name": lambda m, a: changed(m, a, **{SECRET: torch.zeros(1)}),
    "another shape": lambda m, a: changed(m, a, fc__bias=torch.full((50,), NUMBER)),
    "a counter": lambda m, a: changed(m, a, norm__num_batches_tracked=torch.tensor(2**40)),
    "a counter below nothing": lambda m, a: changed(
        m, a, norm__num_batches_tracked=torch.tensor(-7)
    ),
    "a counter with a fraction": lambda m, a: changed(
        m, a, norm__num_batches_tracked=torch.tensor(NUMBER, dtype=torch.float64)
    ),
    "integers that encode numbers": lambda m, a: changed(
        m, a, ids=torch.full((4,), NUMBER).view(torch.int32).long()
    ),
    "truth values that encode labels": lambda m, a: changed(
        m, a, mask=torch.tensor([True, False, False, True])
    ),
    "integers in place of weights": lambda m, a: changed(
        m, a, fc__bias=torch.full((5,), NUMBER).view(torch.int32)
    ),
    "complex weights": lambda m, a: changed(
        m, a, fc__bias=torch.full((5,), complex(0, NUMBER), dtype=torch.complex64)
    ),
    "payload of NaN": lambda m, a: changed(
        m, a, fc__bias=torch.full((5,), 0x7FC01234, dtype=torch.int32).view(torch.float32)
    ),
    "bytes after the numbers": lambda m, a: with_array(
        m, a, lambda array: told(array, data=array.data + SECRET.encode())
    ),
    "text of the type": lambda m, a: with_array(
        m, a, lambda array: told(array, dtype=f"float32 {SECRET}")
    ),
    "text of the format": lambda m, a: with_array(m, a, lambda array: told(array, stype=SECRET)),
    "another shape than the bytes'": lambda m, a: with_array(
        m, a, lambda array: told(array, shape=(5, 1, 7))
    ),
    "text in the header of the bytes": lambda m, a: with_array(
        m, a, lambda array: with_header(array, f"{header(array)} # {SECRET}")
    ),
    "spaces in the header of the bytes": lambda m, a: with_array(
        m, a, lambda array: with_header(array, header(array) + " \t" * 500)
    ),
    "pickled objects": lambda m, a: with_array(
        m, a, lambda array: told(array, data=array.data.replace(b"'<f4'", b"'|O' "))
    ),
    "texts as numbers": lambda m, a: with_array(m, a, lambda _: Array(np.array([SECRET] * 5))),
    "fields with names": lambda m, a: with_array(
        m, a, lambda _: Array(np.zeros(5, np.dtype([(SECRET, np.float32)])))
    ),
    "bytes that are no array": lambda m, a: with_array(
        m, a, lambda array: told(array, data=SECRET.encode())
    ),
    "a group in the metadata": lambda m, a: with_metadata(m, a, group_id=SECRET),
    "a type in the metadata": lambda m, a: with_metadata(m, a, message_type="train.the_labels"),
    "another receiver": lambda m, a: with_metadata(m, a, dst_node_id=99),
    "metadata of the request": through_the_request,
    "numbers of another type": lambda m, a: plain(m, a, c=MetricRecord({"loss": Loud(NUMBER)})),
    "weights and an error": both,
    "no message": lambda *_: {"labels": SECRET},
    "nothing": lambda *_: None,
}

# What leaves is the reply without what was hidden in it, or an error of the app without its text.
HARMLESS = {
    "chunks that are not the bytes": with_chunks,
    "an array that says something else": lambda m, a: with_array(
        m, a, lambda array: Talkative(array.numpy())
    ),
    "records that change": lambda m, a: Message(Later(plain(m, a).content), reply_to=m),
    "text of an error": lambda m, _: Message(Error(2, SECRET), reply_to=m),
    "code of an error": lambda m, _: Message(Error(2**40 + 7, "no data"), reply_to=m),
    "a made-up refusal": lambda m, _: Message(Error(REFUSED, SECRET), reply_to=m),
    "text of an exception": raising,
}

# To messages of other types.
OTHERS = {
    "weights": reply_to,
    "weights beside numbers": lambda m, a: reply_to(m, a, accuracy=0.5, num_examples=SAMPLES),
    "bytes": lambda m, _: Message(RecordDict({"c": ConfigRecord({"x": b"1"})}), reply_to=m),
    "text": lambda m, _: Message(RecordDict({"c": ConfigRecord({"x": SECRET})}), reply_to=m),
    "numbers": lambda m, _: reply_to(m, accuracy=[NUMBER] * 50),
    "many numbers": lambda m, _: Message(RecordDict({"m": MetricRecord(MANY)}), reply_to=m),
    "a name": lambda m, _: reply_to(m, **{SECRET: 0.5}),
    "metadata": lambda m, _: with_metadata(m, {}, group_id=SECRET),
}


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
