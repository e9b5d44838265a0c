"""The tables of other losses than the plain cross-entropy; used by `claims.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from markdown_tables import table, three

RECORD = "results/benchmark-losses.json"
SHARES = "results/benchmark-loss-shares.json"
CAPTURES = "results/benchmark-loss-captures.json"
SPEED = "results/benchmark-loss-speed.json"
# Smaller errors are written with an exponent.
_SMALL = 1e-3
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


def shares(read: Read) -> list[str]:
    """Shares of pixels, levels and means: how far off, and how many verdicts are silent."""
    rows = [
        [
            row["title"],
            f"{row['batches']}",
            _short(row["error"]),
            _short(row["worst"]),
            three(row["within"]),
            f"{row['refused']}",
            three(row["unflagged"]),
            "" if row["silent"] is None else f"{row['silent']}",
        ]
        for row in read(SHARES)["rows"]
    ]
    headings = [
        "setting", "updates", "mean error", "largest error", "within 5 %", "refused", "unflagged",
        "off without a flag",
    ]  # fmt: skip
    return table(headings, rows)


def captures(read: Read) -> list[str]:
    """The largest errors of a capture, by loss and precision."""
    rows = [
        [row["title"], f"{row['single']:.1e}", f"{row['double']:.1e}"]
        for row in read(CAPTURES)["rows"]
    ]
    return table(["loss", "single precision", "double precision"], rows)


def speed(read: Read) -> list[str]:
    """Processor time of the plain cross-entropy, beside that of an earlier commit."""
    rows = [
        [row["title"], f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}"]
        for row in read(SPEED)["rows"]
    ]
    return table(["task", "milliseconds", "of the earlier time"], rows)


def _short(value: float) -> str:
    return three(value) if value == 0.0 or value >= _SMALL else f"{value:.1e}"


LOSSES: dict[str, Callable[[Read], list[str]]] = {
    **{f"losses-{group}": partial(losses, group) for group in ("bars", "tasks")},
    "losses-shares": shares,
    "losses-captures": captures,
    "losses-speed": speed,
}
