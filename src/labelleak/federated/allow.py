"""What a message may hold beside the weights that are audited: names, types and sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

Sizes = Mapping[str, int] | tuple[tuple[str, int], ...]

_MEASURES = ("loss", "accuracy", "acc", "error", "f1", "auc", "auroc", "precision", "recall")

USUAL_NUMBERS = (
    *(*_MEASURES, *(f"*_{measure}" for measure in _MEASURES)),
    *("num_examples", "num_samples", "num_steps", "num_batches", "num_epochs", "epoch", "epochs"),
    *("lr", "learning_rate", "time", "*_time", "duration"),
    # What the frameworks add themselves, and what a shared audit adds.
    *("code", "norm_bit", "NUM_STEPS_CURRENT_ROUND"),
    *("server_round", "current_round", "start_round", "total_rounds", "num_rounds"),
    "labelleak_*",
)
"""Names of the numbers that an ordinary app sends: what a policy without ``[allow]`` allows."""

# The state of a reply of Flower's older clients: "Success".
_USUAL_TEXTS = (("*.status/message", 7),)

# A `*` in a name: an app chooses what stands for it, so that it must be short and plain.
_FREE = "[A-Za-z0-9_.-]{0,20}"


@dataclass(frozen=True)
class Allow:
    """The allow-list of a policy: what may leave in a message without an audit.

    A name is that of one entry, ``"loss"``, or its whole path, ``"metrics/loss"``. Case counts for
    nothing, and ``_`` is as ``-``. A ``*`` stands for at most 20 letters, digits, ``_``, ``-`` and
    ``.``, not for a ``/``. An entry that is not listed, is of another type or is longer must not
    leave.

    Attributes:
        numbers: Names of numbers: whole ones of at most 64 bits, others, and truth values.
        lists: Names of lists of numbers, and how many numbers each may hold.
        texts: Names of texts, and how many letters each may have.
        most: How many numbers one message may hold in all; 8 letters of a text count as one. Each
            number can carry 64 bits of anything.

    Raises:
        ValueError: A value is impossible; the message names the key.

    Examples:
        >>> allow = Allow(numbers=("loss", "val_*"), lists={"auc": 10})
        >>> allow.number(("metrics", "val-loss")), allow.number(("metrics", "labels"))
        (True, False)
        >>> allow.longest_list(("metrics", "auc"))
        10
    """

    numbers: tuple[str, ...] = USUAL_NUMBERS
    lists: Sizes = ()
    texts: Sizes = _USUAL_TEXTS
    most: int = 32

    def __post_init__(self) -> None:
        names = self.numbers
        if not isinstance(names, list | tuple) or not all(_is_name(name) for name in names):
            raise ValueError(f"allow.numbers = {names!r}: a list of names is needed")
        object.__setattr__(self, "numbers", tuple(names))
        for key in ("lists", "texts"):
            sizes = getattr(self, key)
            pairs = tuple(sizes.items()) if isinstance(sizes, Mapping) else sizes
            if not isinstance(pairs, tuple) or not all(_is_size(pair) for pair in pairs):
                raise ValueError(
                    f"allow.{key} = {sizes!r}: names with a whole number each are needed, as in "
                    "{ name = 10 }"
                )
            object.__setattr__(self, key, pairs)
        if type(self.most) is not int or self.most < 0:
            raise ValueError(f"allow.most = {self.most!r}: a whole number of at least 0 is needed")

    @classmethod
    def of(cls, content: object) -> "Allow":
        """The allow-list that stands in a policy file.

        Args:
            content: The table ``[allow]`` as it was read.

        Raises:
            ValueError: It is no table, or a key or value is wrong; the message names the key.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping):
            raise ValueError(f"allow = {content!r}: a table is needed, [allow]")
        unknown = [key for key in content if key not in known]
        if unknown:
            raise ValueError(f"allow.{unknown[0]} is no key of a policy: {', '.join(known)}")
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        """The list as plain data, as a policy file has it."""
        content = {key: getattr(self, key) for key in ("numbers", "lists", "texts", "most")}
        return {**content, "lists": dict(self.lists), "texts": dict(self.texts)}

    def number(self, path: tuple[str, ...]) -> bool:
        """Whether the entry of that path may be a number."""
        return any(_fits(pattern, path) for pattern in self._numbers)

    def longest_list(self, path: tuple[str, ...]) -> int | None:
        """How many numbers the list of that path may hold; None where it may not be a list."""
        return _largest(self._lists, path)

    def longest_text(self, path: tuple[str, ...]) -> int | None:
        """How many letters the text of that path may have; None where it may not be a text."""
        return _largest(self._texts, path)

    @cached_property
    def _numbers(self) -> list[re.Pattern[str]]:
        return [_compiled(name) for name in self.numbers]

    @cached_property
    def _lists(self) -> list[tuple[re.Pattern[str], int]]:
        return [(_compiled(name), size) for name, size in dict(self.lists).items()]

    @cached_property
    def _texts(self) -> list[tuple[re.Pattern[str], int]]:
        return [(_compiled(name), size) for name, size in dict(self.texts).items()]


def _largest(sizes: list[tuple[re.Pattern[str], int]], path: tuple[str, ...]) -> int | None:
    return max((size for pattern, size in sizes if _fits(pattern, path)), default=None)


def _fits(pattern: re.Pattern[str], path: tuple[str, ...]) -> bool:
    """Whether a pattern is that of the last part of a path, or of the whole path."""
    return any(pattern.fullmatch(name.replace("_", "-")) for name in (path[-1], "/".join(path)))


def _compiled(name: str) -> re.Pattern[str]:
    plain = [re.escape(part) for part in name.replace("_", "-").split("*")]
    return re.compile(_FREE.join(plain), re.IGNORECASE | re.ASCII)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(pair: object) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_name(pair[0])
        and type(pair[1]) is int
        and pair[1] >= 0
    )
