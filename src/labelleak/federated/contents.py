"""Everything that leaves in a message beside the audited weights: what of it a policy allows."""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelleak.federated.allow import Allow

Path = tuple[str, ...]

_NUMBERS = (
    *(bool, int, float, np.bool_, np.float16, np.float32, np.float64),
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
)
_GROUPS = (dict, OrderedDict)
# Names of records and of nested tables, which no policy lists.
_GROUP_NAME = re.compile(r"[A-Za-z0-9_.-]{0,24}", re.ASCII)
_MOST_GROUPS = 8
_DEEPEST = 4
# A message of more entries is not read to its end.
_MOST_READ = 2_000
_MOST_NAMED = 20
_LETTERS_PER_NUMBER = 8

BY_CLASS = "a number for each class"
"""What a `Leak` tells that is one number by class: accuracy by class, say."""

_SAMPLES = re.compile(r"num[-_](examples|samples)|n[-_]samples|samples|instances", re.IGNORECASE)
_STEPS = re.compile(r"num[-_](steps|batches)|NUM_STEPS_CURRENT_ROUND", re.IGNORECASE)
_CLASS_NAME = re.compile(r"(^|[-_.])(class|label)(es|s)?([-_.\d]|$)", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+")


@dataclass(frozen=True)
class Unreadable:
    """An entry that an adapter could not turn into plain data: it is never allowed.

    Attributes:
        what: What it is, in words of the adapter, ``"an array"``.
    """

    what: str


@dataclass(frozen=True)
class Leak:
    """An entry that gives away something of the labels by itself, whatever an attack restores.

    Attributes:
        what: What it tells.
        where: Path of the entry.
        why: How it tells it.
    """

    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Contents:
    """What a message carries beside the audited weights.

    Attributes:
        unaudited: Entries that neither an audit nor the policy covers: path and what is wrong.
        leaks: Entries that tell something of the labels by themselves.

    Examples:
        >>> found = look_at({"metrics": {"loss": 0.5, "labels": [0, 0, 2]}}, Allow())
        >>> found.unaudited
        ('metrics/labels (a list of 3 numbers)',)
    """

    unaudited: tuple[str, ...] = ()
    leaks: tuple[Leak, ...] = ()

    @property
    def problem(self) -> str | None:
        """What leaves unseen, in one clause; None where nothing does."""
        if not self.unaudited:
            return None
        shown = "; ".join(self.unaudited[:3])
        more = len(self.unaudited) - 3
        rest = f" and {more} more" if more > 0 else ""
        return f"neither audited nor allowed by the policy: {shown}{rest}"


NOTHING = Contents()
"""A message that holds its weights and nothing else."""


def look_at(
    tree: Mapping[Any, Any], allow: Allow, classes: int | None = None, problems: Iterable[str] = ()
) -> Contents:
    """Compare what a message holds with what a policy allows; nothing in it makes this raise.

    Args:
        tree: The entries by name: numbers, texts, lists, tables of the same, and `Unreadable`. The
            audited weights are not in it.
        allow: The policy's list.
        classes: Number of classes C, where it is known: a list of C numbers is one by class.
        problems: What the adapter found wrong, in words.

    Returns:
        What is not allowed, and what tells of the labels by itself.
    """
    return _Look(allow, classes, list(problems)).over(tree)


def is_number(value: object) -> bool:
    """Whether a value is a number of at most 64 bits. A subclass may carry more, and is none."""
    if type(value) not in _NUMBERS:
        return False
    return type(value) is not int or -(2**63) <= value < 2**64


def shown(path: Iterable[object]) -> str:
    """A path as it stands in a record: printable, and not too long."""
    text = "/".join(str(part)[:60] for part in path)
    plain = text.encode("unicode_escape", errors="backslashreplace").decode("ascii")
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


class _Look:
    """One look at one message."""

    def __init__(self, allow: Allow, classes: int | None, unaudited: list[str]) -> None:
        self._allow, self._classes = allow, classes
        self._unaudited = unaudited
        self._numbers = 0.0
        self._groups: set[Path] = set()
        self._leaks: list[Leak] = []
        self._by_number: dict[str, list[tuple[Path, Any]]] = {}

    def over(self, tree: Mapping[Any, Any]) -> Contents:
        entries = _entries(tree, ())
        for _, (path, value) in zip(range(_MOST_READ), entries, strict=False):
            self._look(path, value)
        if next(entries, None) is not None:
            self._unaudited.append(f"more than {_MOST_READ} entries")
        if self._numbers > self._allow.most:
            self._unaudited.append(
                f"{math.ceil(self._numbers)} numbers where {self._allow.most} are allowed"
            )
        if len(self._groups) > _MOST_GROUPS:
            self._unaudited.append(f"{len(self._groups)} tables where {_MOST_GROUPS} are allowed")
        for same in self._by_number.values():
            if _is_by_class([path[-1] for path, _ in same]):
                self._by_class(same[0][0], [value for _, value in same])
        return Contents(self._named(), tuple(self._leaks))

    def _named(self) -> tuple[str, ...]:
        rest = len(self._unaudited) - _MOST_NAMED
        named = tuple(self._unaudited[:_MOST_NAMED])
        return (*named, f"{rest} more") if rest > 0 else named

    def _look(self, path: tuple[Any, ...], value: Any) -> None:
        problem = self._name_problem(path) or self._value_problem(path, value)
        if problem is not None:
            self._unaudited.append(f"{shown(path)} ({problem})")
        elif type(value) not in _GROUPS:
            self._note(path, value)

    def _name_problem(self, path: tuple[Any, ...]) -> str | None:
        if any(type(part) is not str for part in path):
            return "its name is no text"
        groups = path[:-1]
        for part in groups:
            if not _GROUP_NAME.fullmatch(part):
                return "a table's name is too long or not plain"
        self._groups.update(groups[:depth] for depth in range(1, len(groups) + 1))
        return None

    def _value_problem(self, path: Path, value: Any) -> str | None:
        allow = self._allow
        if type(value) in _GROUPS:  # an empty one: its name is all there is
            self._groups.add(path)
            return None if _GROUP_NAME.fullmatch(path[-1]) else "a table's name is not plain"
        if value is None or is_number(value):
            self._numbers += 1
            return None if allow.number(path) else "a number"
        if type(value) is str:
            self._numbers += len(value) / _LETTERS_PER_NUMBER
            most = allow.longest_text(path)
            fits = most is not None and len(value) <= most
            return None if fits else f"a text of {len(value)} letters"
        if type(value) in (list, tuple):
            self._numbers += len(value)
            most = allow.longest_list(path)
            fits = most is not None and len(value) <= most and all(map(is_number, value))
            return None if fits else _listed(value)
        return value.what if isinstance(value, Unreadable) else _typed(value)

    def _note(self, path: Path, value: Any) -> None:
        name = path[-1]
        if _SAMPLES.fullmatch(name):
            self._leak("number of local samples", path, "it tells how many labels there are in all")
        elif _STEPS.fullmatch(name):
            self._leak("number of local steps", path, "with the batch size, it counts the samples")
        elif type(value) in (list, tuple):
            if len(value) == self._classes or _CLASS_NAME.search(name):
                self._by_class(path, value)
        elif _NUMBERED.search(name):
            self._by_number.setdefault(_NUMBERED.sub("#", "/".join(path)), []).append((path, value))
        elif _CLASS_NAME.search(name):
            self._by_class(path, [value])

    def _by_class(self, path: Path, values: Iterable[Any]) -> None:
        values = list(values)
        absent = sum(
            isinstance(value, float | np.floating) and math.isnan(value) for value in values
        )
        why = f"{len(values)} numbers; a rare class shows by how coarse its number is"
        if absent:
            why = f"{absent} of {len(values)} are NaN: those classes have no sample"
        self._leak(BY_CLASS, path, why)

    def _leak(self, what: str, path: Path, why: str) -> None:
        if len(self._leaks) < _MOST_NAMED:
            self._leaks.append(Leak(what, shown(path), why))


def _entries(tree: Mapping[Any, Any], path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Every entry and its path."""
    for name, value in tree.items():
        here = (*path, name)
        table = type(value) in _GROUPS and value
        if table and len(here) <= _DEEPEST:
            yield from _entries(value, here)
        else:
            yield here, Unreadable("nested too deep") if table else value


def _is_by_class(names: list[str]) -> bool:
    """Whether names that differ in their number only are those of classes: not top1 and top5."""
    if _CLASS_NAME.search(names[0]) or len(names) > 2:
        return True
    numbers = sorted(int(found[-1][:9]) for name in names if (found := _NUMBERED.findall(name)))
    return numbers in ([0, 1], [1, 2])


def _listed(values: list[Any] | tuple[Any, ...]) -> str:
    if all(map(is_number, values[:_MOST_READ])):
        return f"a list of {len(values)} numbers"
    return f"a list of {len(values)} entries that are no plain numbers"


def _typed(value: Any) -> str:
    if type(value) in (bytes, bytearray, memoryview):
        return f"{len(value)} bytes"
    if type(value) is int:
        return "a number of more than 64 bits"
    return f"a value of type {shown([type(value).__name__])}"
