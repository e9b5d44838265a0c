"""``labelleak reproduce``: the tables and figures of the paper, beside the published ones."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labelleak.cli.output import PathOption, console, format_option
from labelleak.cli.running import (
    RUN_SCHEMA,
    Place,
    check_extras,
    place_options,
    run_experiments,
    write_results,
)
from labelleak.lab.studies import NAMES
from labelleak.views import NONE, number

_UNPUBLISHED_SHOWN = ("ilrg.leacc", "ilrg.lnacc", "ilrg.irec", "psnr_best6")
_ALWAYS_SHOWN = ("psnr",)


@click.command()
@click.argument("name", type=click.Choice([*NAMES, "all"]))
@click.option(
    "--scale",
    type=click.Choice(["smoke", "quick", "paper"]),
    default="quick",
    show_default=True,
    help="smoke: minutes, on the embedded digits; quick: about two hours for all on two cores, one "
    "of them for figure4; paper: the paper's own sizes, days without a GPU.",
)
@click.option(
    "--out",
    type=PathOption("folder"),
    help="Folder for the records and the report. Default: labelleak-runs/<name>-<scale>.",
)
@place_options
@format_option
def reproduce(
    name: str,
    scale: str,
    out: Path | None,
    data_dir: Path | None,
    workers: int | None,
    dask: str | None,
    device: str,
    output_format: str,
) -> None:
    """Run a table or figure of the iLRG paper, or all of them.

    The paper is Ma et al., ICLR 2023. Every result is shown with its 95 % interval, the published
    figure and the difference. Data that is not there is replaced where something can stand in for
    it; what is replaced, shrunk or left out is listed. Interrupted at any moment, the same command
    goes on where it was.

    Writes records.jsonl, summary.json, a CSV file per study, report.html and, for figure4, the
    folder pictures. Networks are trained
    where a study needs that, and kept in the cache (LABELLEAK_CACHE).
    """
    check_extras()
    from labelleak.lab import paper
    from labelleak.lab.sources import PUBLISHED_SOURCES, find_sources
    from labelleak.lab.summary import summarize

    size = cast(Literal["smoke", "quick", "paper"], scale)
    sources = PUBLISHED_SOURCES if size == "smoke" else find_sources(data_dir)
    folder = Path("labelleak-runs") / f"{name}-{scale}" if out is None else out
    place = Place(data_dir, workers, dask, device)
    title = f"Reproduction of iLRG, {name}, scale {scale}"
    summaries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    page = folder / "report.html"
    target = console()
    for study_name in NAMES if name == "all" else (name,):
        study = paper.study(study_name, size, sources)
        records, failures = run_experiments(study.experiments, folder, place)
        failed |= failures
        summaries.append(summarize(study, records))
        # After each, so that a run that is stopped has a page of what it finished.
        page = write_results(folder, title, summaries)
        if output_format == "table":
            print_study(summaries[-1], target)
    if output_format == "json":
        content = {"schema": RUN_SCHEMA, "title": title, "studies": summaries}
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        target.print(f"Page: {page}", soft_wrap=True)
    sys.exit(2 if failed else 0)


def print_study(summary: dict[str, Any], target: Console) -> None:
    """A study for a reader: each figure beside the published one, then why some differ.

    Args:
        summary: See `labelleak.lab.summary`.
        target: Where to print.
    """
    table = Table(title=summary["title"], caption=summary["interval"])
    table.add_column("setting", overflow="fold")
    table.add_column("metric")
    for heading in ("ours", "95 % interval", "published", "difference"):
        table.add_column(heading, justify="right")
    for row in summary["rows"]:
        label = row["label"]
        for metric, cell in _shown(summary, row):
            style = "yellow" if cell["inside"] is False else None
            table.add_row(label, metric["title"], *_texts(metric, cell), style=style)
            label = ""
        table.add_section()
    target.print(table)
    for row in summary["rows"]:
        if row["note"]:
            target.print(Text.assemble((row["label"], "yellow"), f": {row['note']}"))
    if summary["omitted"]:
        target.print("Left out, shrunk or replaced, at this scale and with this data:")
    for text in summary["omitted"]:
        target.print(f"  {text}")
    target.print()


def _shown(
    summary: dict[str, Any], row: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The metrics that were published; of a row that was not, the usual ones."""
    cells = row["metrics"]
    published = [name for name in cells if cells[name]["published"] is not None]
    for metric in summary["metrics"]:
        shown = (*(published or _UNPUBLISHED_SHOWN), *_ALWAYS_SHOWN)
        if metric["name"] in shown and metric["name"] in cells:
            yield metric, cells[metric["name"]]


def _texts(metric: dict[str, Any], cell: dict[str, Any]) -> tuple[str, str, str, str]:
    fixed = metric["bounds"][1] is not None
    ours, low, high, published = (
        number(cell[key], fixed=fixed) for key in ("ours", "low", "high", "published")
    )
    interval = NONE if cell["low"] is None else f"{low}..{high}"
    return ours, interval, published, number(cell["difference"], fixed=fixed, signed=True)
