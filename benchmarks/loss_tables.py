"""The tables of other losses than the plain cross-entropy; used by `claims.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from markdown_tables import table, three

RECORD = "results/benchmark-losses.json"
Read = Callable[[str], Any]


def losses(group: str, read: Read) -> list[str]:
    """The rows of a group: means over batches, and how many verdicts were wrong without a flag."""
    rows = [_cells(row) for row in read(RECORD)["rows"] if row["group"] == group]
    headings = [
        "setting", "batches", "counts right", "all counts right", "labels right", "proven",
        "unflagged", "intervals hold", "error of a share (of a guess)", "wrong without a flag",
    ]  # fmt: skip
    return table(headings, rows)


def _cells(row: Any) -> list[str]:
    if row["right"] is None:
        return [row["title"], f"{row['batches']}", "refused", *[""] * 7]
    error = three(row["macro"])
    if row["guess"] is not None:
        error = f"{error} ({three(row['guess'])})"
    return [
        row["title"],
        f"{row['batches']}",
        *(three(row[name]) for name in ("right", "exact", "accuracy", "certified", "unflagged")),
        three(row["coverage"]),
        error,
        f"{row['silent']}",
    ]


LOSSES: dict[str, Callable[[Read], list[str]]] = {
    f"losses-{group}": partial(losses, group) for group in ("bars", "tasks")
}
