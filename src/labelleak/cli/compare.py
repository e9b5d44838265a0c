"""``labelleak compare``: a user's own grid of experiments, through the code of the paper's."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from labelleak.cli.output import PathOption, console, format_option, time_limit_option
from labelleak.cli.running import (
    Place,
    check_extras,
    place_options,
    run_experiments,
    write_results,
)
from labelleak.views import NONE, SCORES, number

# The recall of the paper, of counts whose sum is free, has its own name.
_SCORES = {
    "leacc": SCORES["leacc"],
    "lnacc": SCORES["lnacc"],
    "irec": "IRec",
    "accuracy": SCORES["accuracy"],
    "exact": SCORES["exact"],
}
# Of those that every attack may be asked for, where any is.
_FURTHER = {"certified": "certified", "coverage": "coverage", "seconds": "s"}


@click.command()
@click.argument("grid", type=PathOption("file"))
@click.option(
    "--out",
    type=PathOption("folder"),
    help="Folder for the records and the report. Default: labelleak-runs/<name of the grid>.",
)
@time_limit_option
@place_options
@format_option
def compare(
    grid: Path,
    out: Path | None,
    time_limit: float | None,
    data_dir: Path | None,
    workers: int | None,
    dask: str | None,
    device: str,
    output_format: str,
) -> None:
    """Compare attacks and defences on a grid of your own.

    GRID has a table [defaults], tables [[experiment]], and a table [grid] of alternatives, of which
    every combination is run:

    \b
        [defaults]
        data = "mnist-sample"
        network = { name = "fcn-3" }
        batch = { sampler = "random" }
        attacks = ["ilrg", "rlg"]
        trials = 20
        [[experiment]]
        name = "undefended"
        [[experiment]]
        name = "noise"
        defense = { name = "gaussian_noise", value = 1e-3 }
        [grid]
        batch.size = [8, 24, 64]

    Interrupted at any moment, the same command goes on where it was. Writes records.jsonl,
    summary.json, a CSV file and report.html.
    """  # noqa: D301
    check_extras()
    from labelleak.lab.experiment_grid import grid_study, read_grid
    from labelleak.lab.summary import summarize

    experiments = read_grid(grid)
    if time_limit is not None:
        limited = {"time_limit": time_limit}
        experiments = [experiment.model_copy(update=limited) for experiment in experiments]
    folder = Path("labelleak-runs") / grid.stem if out is None else out
    place = Place(data_dir, workers, dask, device)
    records, failed = run_experiments(experiments, folder, place)
    title = f"Comparison: {grid.stem}"
    summary = summarize(grid_study(experiments, grid.stem, title), records)
    page = write_results(folder, title, [summary])
    if output_format == "json":
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        target = console()
        target.print(_table(summary))
        for row in summary["rows"]:
            for attack, failure in row["failed"].items():
                target.print(
                    f"{attack} could not run in {failure['failed']} of {failure['of']} trials of "
                    f"{row['label']!r}: {failure['error']}",
                )
        target.print(f"Page: {page}", soft_wrap=True)
    sys.exit(2 if failed else 0)


def _table(summary: dict[str, Any]) -> Table:
    """One line per experiment and attack or baseline."""
    table = Table(
        title=summary["title"],
        caption="mean over trials, and half of the 95 % interval; LeAcc, LnAcc and IRec before the "
        "sum of the counts is repaired, as published",
    )
    measured = {m["name"].rpartition(".")[2] for m in summary["metrics"]}
    columns = _SCORES | {key: title for key, title in _FURTHER.items() if key in measured}
    table.add_column("experiment")
    table.add_column("trials", justify="right")
    table.add_column("attack")
    for title in columns.values():
        table.add_column(title, justify="right")
    attacks = dict.fromkeys(m["attack"] for m in summary["metrics"] if m["attack"] is not None)
    for row in summary["rows"]:
        label, trials = row["label"], str(row["trials"])
        for attack in attacks:
            cells = _scores(row["metrics"], attack)
            if any(cells.values()) or attack in row["failed"]:
                cells |= {key: row["metrics"].get(f"{attack}.{key}") for key in _FURTHER}
                table.add_row(label, trials, attack, *(_cell(cells[key]) for key in columns))
                label = trials = ""
        table.add_section()
    return table


def _scores(metrics: dict[str, Any], attack: str) -> dict[str, Any]:
    """The scores of an attack, but for those that it has of some batches only.

    An attack that tells sets knows the numbers where one possibility is left: the mean over those
    batches says nothing about the others.
    """
    cells = {name: metrics.get(f"{attack}.{name}") for name in _SCORES}
    most = max((cell["trials"] for cell in cells.values() if cell), default=0)
    return {name: cell if cell and cell["trials"] == most else None for name, cell in cells.items()}


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["ours"] is None:
        return NONE
    if cell["low"] is None:
        return number(cell["ours"])
    half = max(cell["high"] - cell["ours"], cell["ours"] - cell["low"])
    return f"{number(cell['ours'])} \N{PLUS-MINUS SIGN}{number(half)}"
