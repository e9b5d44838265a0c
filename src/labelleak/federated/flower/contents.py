"""Everything that leaves in a Flower message: records, the form of arrays, metadata, errors."""

import math
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from labelleak.federated.allow import Allow
from labelleak.federated.contents import Contents, Unreadable, look_at, shown

_RECORDS = (ArrayRecord, MetricRecord, ConfigRecord)
_FROM_THE_REQUEST = (
    *("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "message_type"),
)
# What NumPy writes beyond the text of an array's header: spaces up to a multiple of 64, and room
# for a longer shape.
_MOST_SPACES = 128


class Header(NamedTuple):
    """What the bytes of an array in NumPy's format say of it.

    Attributes:
        shape: Its shape.
        by_columns: Whether its entries are in Fortran's order.
        dtype: Their type.
        length: Length of the header in bytes.
    """

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    length: int


def header_of(array: Array) -> Header:
    """The header of an array's bytes; nothing is unpickled.

    Raises:
        Exception: It is none; whatever NumPy raises.
    """
    file = BytesIO(array.data)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    return Header(*read(file), file.tell())


def contents_of(
    reply: Message,
    allow: Allow,
    classes: int | None,
    *,
    audited: bool,
    problems: Iterable[str] = (),
) -> Contents:
    """What a reply holds beside the weights that are audited; nothing in it makes this raise.

    Args:
        reply: The reply.
        allow: The policy's allow-list.
        classes: Number of classes, where it is known.
        audited: Whether the weights in its first record of arrays are audited.
        problems: What else was found wrong, in words.

    Returns:
        What is not allowed: other records and entries, and arrays whose bytes or texts carry more
        than their numbers.
    """
    try:
        tree, odd = _plain(reply, audited)
    except Exception as error:  # whatever an app put together
        tree, odd = {}, [f"a reply that cannot be read ({shown([error])})"]
    return look_at(tree, allow, classes, [*problems, *odd])


class Answer:
    """Replies to a message, made before an app has it and can change what they are made from."""

    def __init__(self, message: Message) -> None:
        """Make a reply that holds nothing, and one that is an error."""
        self._reply = Message(RecordDict(), reply_to=message)
        self._error = Message(Error(0), reply_to=message)

    def metadata_problem(self, reply: Message) -> str | None:
        """What an app changed of the metadata of its reply, in words; None where it did nothing."""
        changed = [
            name
            for name in _FROM_THE_REQUEST
            if getattr(reply.metadata, name) != getattr(self._reply.metadata, name)
        ]
        return f"metadata ({', '.join(changed)})" if changed else None

    def rebuilt(self, reply: Message) -> Message:
        """A reply of what was looked at, and of nothing else that an app may have hung on to it.

        Flower sends cached chunks of an array in place of its bytes, and whatever a subclass makes
        of them: neither is in the records that are made here. The bytes themselves are not copied.
        """
        records = {name: _fresh(record) for name, record in reply.content.items()}
        self._reply.content = RecordDict(records)
        return self._reply

    def error(self, error: Error) -> Message:
        """The reply that is an error."""
        self._error.error = error
        return self._error


def _fresh(record: Any) -> ArrayRecord | MetricRecord | ConfigRecord:
    """A record of the same entries.

    Raises:
        TypeError: It is none of Flower's.
    """
    if type(record) is ArrayRecord:
        return ArrayRecord(
            {
                name: Array(array.dtype, array.shape, array.stype, array.data)
                for name, array in record.items()
            }
        )
    if type(record) not in _RECORDS:
        raise TypeError("a record of a type that is not Flower's")
    entries = record.items()
    return type(record)(  # type: ignore[no-any-return]
        {name: list(value) if isinstance(value, list) else value for name, value in entries}
    )


def _plain(reply: Message, audited: bool) -> tuple[dict[Any, Any], list[str]]:
    """The entries of a reply as plain data, and what is wrong with its audited arrays."""
    tree: dict[Any, Any] = {}
    problems: list[str] = []
    for name, record in reply.content.items():
        if type(record) not in _RECORDS:
            tree[name] = Unreadable("a record of a type that is not Flower's")
        elif not isinstance(record, ArrayRecord):
            tree[name] = dict(record)
        elif audited:
            audited = False
            tree[name] = {}
            problems += _array_problems(name, record)
        else:
            tree[name] = Unreadable(f"a record of {len(record)} arrays") if record else {}
    return tree, problems


def _array_problems(name: str, record: ArrayRecord) -> Iterator[str]:
    for key, array in record.items():
        try:
            problem = _array_problem(array)
        except Exception:  # whatever an app wrote
            problem = "bytes that are no array"
        if problem is not None:
            yield f"{shown([name, key])} ({problem})"


def _array_problem(array: Array) -> str | None:
    """What an array carries beside its numbers: its texts and bytes say the same of it."""
    if type(array) is not Array or type(array.data) is not bytes:
        return "an array of a type that is not Flower's"
    header = header_of(array)
    if array.stype != "numpy.ndarray" or header.dtype.hasobject:
        return "a format that is not NumPy's"
    if array.dtype != str(header.dtype) or type(array.dtype) is not str:
        return "a text of its type that is not that of its bytes"
    shape = array.shape
    if type(shape) is not tuple or shape != header.shape or any(type(n) is not int for n in shape):
        return "a shape that is not that of its bytes"
    entries = math.prod(header.shape)
    if len(array.data) != header.length + entries * header.dtype.itemsize:
        return "bytes after its numbers"
    # Where the text of the header begins: magic string, version, and its length in 2 or 4 bytes.
    text = array.data[10 if array.data[6] == 1 else 12 : header.length].decode("latin-1")
    order = {
        "descr": np.lib.format.dtype_to_descr(header.dtype),
        "fortran_order": header.by_columns,
    }
    expected = "".join(f"'{key}': {value!r}, " for key, value in {**order, "shape": shape}.items())
    spaces = text.removeprefix(f"{{{expected}}}")
    if spaces == text or spaces.strip(" ") != "\n" or len(spaces) > _MOST_SPACES:
        return "a header that NumPy would not write"
    return None
