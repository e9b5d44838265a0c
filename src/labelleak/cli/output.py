"""What the commands share: paths and the format option, the console, tables of a record."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labelleak.views import MEANINGS, NONE, SCORES, class_rows, number

_MOST_CLASSES = 40
_LONGEST_LINE = 1000
_SHOWN_SCORES = ("accuracy", "exact", "leacc", "lnacc", "recall")


class PathOption(click.Path):
    """A path of a file, or of a folder, that can be named in one line."""

    def __init__(self, what: str) -> None:
        super().__init__(
            file_okay=what != "folder", dir_okay=what != "file", path_type=Path, allow_dash=False
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, unless a control character is in it."""
        if any(ord(char) < 32 or ord(char) == 127 for char in str(value)):
            self.fail(f"{one_line(str(value))!r} has control characters in its name", param, ctx)
        return super().convert(value, param, ctx)


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--format table|json``, passed on as `output_format`."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table to read, or JSON on standard output.",
    )(command)


def time_limit_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--time-limit SECONDS``, passed on as `time_limit`."""
    return click.option(
        "--time-limit",
        type=click.FloatRange(min=0.0, min_open=True),
        metavar="SECONDS",
        help="When the attacks auto and exact end their search; the others need no limit. Default: "
        "10 for auto, 60 for exact.",
    )(command)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the entry point: rich would end with the status of a verdict."""
        raise  # noqa: PLE0704  (called while the error is handled)


def console() -> Console:
    """A console on standard output; wide enough for a table where the output is no terminal.

    Nothing in a text is markup, as names come from files: style is given beside the text.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return _Console(width=None if terminal else 120, markup=False, emoji=False, highlight=False)


def one_line(text: str) -> str:
    """A message as one line of bounded length, without what would steer a terminal."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if len(text) <= _LONGEST_LINE:
        return text
    return f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"


def print_record(record: dict[str, Any], target: Console) -> None:
    """An audit record for a reader: the counts, the score, the flags and the verdict."""
    bias = "" if any(flag["name"] == "no_bias" for flag in record["flags"]) else " and bias"
    steps = f", {record['local_steps']} local steps" if record["local_steps"] > 1 else ""
    target.print(
        Text.assemble(
            "Head ",
            (record["head"] or "(top level)", "bold"),
            f": {record['classes']} classes, {record['features']} features, weight{bias}; "
            f"batch size {record['batch_size'] or 'unknown'}{steps}; attack ",
            (record["attack"], "bold"),
            f" ({record['seconds'] * 1000:.0f} ms)",
        )
    )
    target.print(_counts_table(record))
    if record["score"]:
        scores = [
            f"{SCORES[key]} {number(record['score'][key])}"
            for key in _SHOWN_SCORES
            if record["score"][key] is not None
        ]
        target.print(f"Score: {', '.join(scores)}")
    for flag in record["flags"]:
        target.print(Text.assemble(("flag", "yellow"), f" {flag['name']}: {flag['text']}"))
    # No verdict is green: none of them says that the labels are safe.
    style = {"over threshold": "bold red", "inconclusive": "bold yellow"}
    verdict = record["verdict"]
    target.print(
        Text.assemble("Verdict: ", (verdict, style.get(verdict, "bold")), f" - {record['reason']}")
    )


def scores_table(records: list[dict[str, Any]]) -> Table:
    """The scores of several attacks on one update."""
    table = Table(
        title="Attacks on the same update",
        caption=f"{SCORES['leacc']}: {MEANINGS['leacc']}; {SCORES['lnacc']}: {MEANINGS['lnacc']}; "
        f"{NONE}: the attack tells a set only",
        caption_justify="left",
    )
    table.add_column("attack")
    for key in _SHOWN_SCORES:
        table.add_column(SCORES[key], justify="right")
    for record in records:
        table.add_row(record["attack"], *(number(record["score"][key]) for key in _SHOWN_SCORES))
    return table


def _counts_table(record: dict[str, Any]) -> Table:
    """Restored (and true) numbers per class."""
    rows = class_rows(record)
    table = Table()
    table.add_column("class", justify="right")
    if record["true_counts"]:
        table.add_column("true", justify="right")
    share = record["proportions"] and not record["counts"]
    table.add_column("restored share" if share else "restored", justify="right")
    for row in rows[:_MOST_CLASSES]:
        true = [str(row["true"])] if record["true_counts"] else []
        table.add_row(str(row["label"]), *true, row["text"], style="red" if row["wrong"] else None)
    if len(rows) > _MOST_CLASSES:
        table.caption = f"and {len(rows) - _MOST_CLASSES} more classes (--format json has all)"
    return table
