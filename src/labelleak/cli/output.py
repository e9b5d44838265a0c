"""What the commands share: the format option, the console, tables of a record."""

import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

_MOST_CLASSES = 40


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


def console() -> Console:
    """A console on standard output; wide enough for a table where the output is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def print_record(record: dict[str, Any], target: Console) -> None:
    """An audit record for a reader: the counts, the score, the flags and the verdict."""
    bias = "" if any(flag["name"] == "no_bias" for flag in record["flags"]) else " and bias"
    target.print(
        f"Head [bold]{record['head'] or '(top level)'}[/bold]: {record['classes']} classes, "
        f"{record['features']} features, weight{bias}; "
        f"batch size {record['batch_size'] or 'unknown'}"
        + (f", {record['local_steps']} local steps" if record["local_steps"] > 1 else "")
        + f"; attack [bold]{record['attack']}[/bold] ({record['seconds'] * 1000:.0f} ms)",
        highlight=False,
    )
    target.print(counts_table(record))
    if record["score"]:
        target.print(_score_line(record["score"]), highlight=False)
    for flag in record["flags"]:
        target.print(f"[yellow]flag[/yellow] {flag['name']}: {flag['text']}", highlight=False)
    colour = {"audited": "green", "over threshold": "red"}.get(record["verdict"], "yellow")
    target.print(
        f"Verdict: [bold {colour}]{record['verdict']}[/bold {colour}] - {record['reason']}",
        highlight=False,
    )


def counts_table(record: dict[str, Any]) -> Table:
    """Restored (and true) numbers per class, the classes without any left out."""
    true, counts, shares = record["true_counts"], record["counts"], record["proportions"]
    shown = set(record["present"]) | {c for c, n in enumerate(true or []) if n}
    table = Table()
    table.add_column("class", justify="right")
    if true:
        table.add_column("true", justify="right")
    heading = "restored" if counts else "restored share" if shares else "restored"
    table.add_column(heading, justify="right")
    for label in sorted(shown)[:_MOST_CLASSES]:
        if counts:
            cell = str(counts[label])
        elif shares:
            cell = f"{shares[label]:.1%}"
        else:
            cell = "present" if label in record["present"] else "-"
        wrong = bool(true and counts and true[label] != counts[label])
        row = [str(label), *([str(true[label])] if true else []), cell]
        table.add_row(*row, style="red" if wrong else None)
    if len(shown) > _MOST_CLASSES:
        table.caption = f"and {len(shown) - _MOST_CLASSES} more classes (--format json has all)"
    return table


def _score_line(score: dict[str, Any]) -> str:
    named = {
        "accuracy": "accuracy", "exact": "exact", "leacc": "LeAcc", "lnacc": "LnAcc",
        "recall": "recall",
    }  # fmt: skip
    return "Score: " + ", ".join(
        f"{title} {number(score[key])}" for key, title in named.items() if score[key] is not None
    )


def number(value: float | bool | None) -> str:
    """A metric for a table: three digits, yes or no, or a dash where there is none."""
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3f}"
