"""The console for results on standard output, and the progress bar on standard error."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from labelleak.cli.messages import tell
from labelleak.storage import write_json

_WIDTH = 120
"""Columns of a table where the output is no terminal."""
_TELL_SECONDS = 30.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the error to the entry point: rich would exit with 1, the status of a verdict."""
        raise  # noqa: PLE0704  (called while the error is handled)


def console() -> Console:
    """A console on standard output, 120 columns wide where that is no terminal.

    It reads no markup in texts, as names in them come from files.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if terminal else _WIDTH
    return _Console(width=width, markup=False, emoji=False, highlight=False)


def deliver(
    content: dict[str, Any],
    output: Path | None,
    output_format: str,
    show: Callable[[dict[str, Any], Console], None],
) -> None:
    """Write a result to a file of its owner's alone, if one was named, and print it.

    Args:
        content: Plain data; it may hold the true counts.
        output: The file, or None.
        output_format: ``"json"``, or ``"table"`` for what `show` prints.
        show: Prints it on a console.
    """
    if output is not None:
        write_json(output, content, private=True)
    if output_format == "json":
        click.echo(json.dumps(content, indent=2))
    else:
        show(content, console())


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar on standard error; it shows nothing where that is no terminal.

    Args:
        *columns: Columns beside the description, the bar, the number and the time left.
    """
    target = _Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(),
        console=target,
        transient=True,
        # Without a terminal it would leave an empty line.
        disable=not target.is_terminal,
    )


def line_teller(bar: Progress) -> Callable[..., None]:
    """A function that prints progress as lines where the bar does not show: now and then one.

    Args:
        bar: The progress bar.

    Returns:
        A function of the line, and of whether it is the first or last of its kind: those are
        printed always, others at most every 30 seconds.
    """
    told = time.monotonic()

    def tell_line(line: str, *, always: bool) -> None:
        nonlocal told
        if bar.disable and (always or time.monotonic() - told > _TELL_SECONDS):
            told = time.monotonic()
            tell(line)

    return tell_line
