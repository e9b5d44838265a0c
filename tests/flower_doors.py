"""Replies of a Flower app that wants more out than the policy allows, by what it tries."""

from collections import OrderedDict

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flower_in_process import SAMPLES, reply_to
from labelleak.federated.flower import REFUSED

# An app hides this; in floating-point numbers it is a number that nothing else holds.
SECRET = "the-labels-are-0-0-2-5"
NUMBER = 1234.56789
BYTES = (SECRET.encode(), np.float32(NUMBER).tobytes(), np.float64(NUMBER).tobytes())


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
