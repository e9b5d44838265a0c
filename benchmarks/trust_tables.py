"""Tables of the docs on how far verdicts can be trusted; used by `claims.py`."""

from collections.abc import Callable
from typing import Any

from markdown_tables import table, three

Read = Callable[[str], Any]
"""Gives the content of a record by its path."""

_KINDS = {
    "plain": "facts true, one step, nothing done",
    "local": "2, 5 or 10 local steps, told",
    "defended": "a defense, not told",
    "wrong": "a fact told wrongly",
}
_RESPECTS = {
    "classes": "{} classes",
    "size": "K = {}",
    "steps": "trained for {} steps",
    "network": "{}",
    "knows": "server knows: {}",
}


def by_kind(read: Read) -> list[str]:
    """By what was done to the update."""
    rows = {row["kind"]: row for row in read("results/benchmark-trust.json")["kind"]}
    return _trust({title: rows[kind] for kind, title in _KINDS.items() if kind in rows})


def by_respect(read: Read) -> list[str]:
    """Of plain updates, by size, network and knowledge."""
    record = read("results/benchmark-trust.json")
    return _trust(
        {
            title.format(f"{row[name]:,}" if isinstance(row[name], int) else row[name]): row
            for name, title in _RESPECTS.items()
            for row in record[name]
        }
    )


def by_fault(read: Read) -> list[str]:
    """By what was told wrongly or done."""
    rows = read("results/benchmark-trust.json")["done"]
    return _trust({row["done"]: row for row in rows})


def _trust(rows: dict[str, Any]) -> list[str]:
    columns = {
        "right": "right",
        "unflagged": "without an unreliable flag",
        "right_unflagged": "right of these",
        "right_or_flagged": "right or flagged",
        "inside": "counts inside 95 % intervals",
        "accuracy": "labels right",
        "guess": "of an even guess",
    }
    lines = []
    for title, row in rows.items():
        cells = [_cell(row[name]) for name in columns]
        lines.append([title, f"{row['batches']:,}", *cells])
    return table(["", "batches", *columns.values()], lines)


def _cell(value: float | None) -> str:
    """A number of batches, a share, or that there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else three(value)


TRUST: dict[str, Callable[[Read], list[str]]] = {
    "trust-kinds": by_kind,
    "trust-respects": by_respect,
    "trust-faults": by_fault,
}
