"""``labelleak reproduce``: the tables and figures of the paper, beside the published ones."""

import json
from pathlib import Path
from typing import Any, Literal

import click

from labelleak.cli.console import console
from labelleak.cli.experiments import Place, check_extras, run_experiments
from labelleak.cli.options import PathOption, format_option, gathered
from labelleak.cli.status import ExitStatus
from labelleak.cli.tables import print_study
from labelleak.lab.studies import NAMES


@click.command("reproduce")
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
@gathered(Place, "place")
@format_option
def reproduce_command(
    name: str,
    scale: Literal["smoke", "quick", "paper"],
    out: Path | None,
    place: Place,
    output_format: str,
) -> int:
    """Run a table or figure of the iLRG paper, or all of them.

    The paper is Ma et al., ICLR 2023. Every result has its 95% interval, the published figure and
    the difference beside it. Another data set stands in for one that is missing, where there is
    one. Whatever is replaced, shrunk or left out is listed.

    Writes records.jsonl, summary.json, a CSV file per study, report.html and, for figure4, the
    folder pictures. Networks are trained where a study needs that, and kept in the cache
    (LABELLEAK_CACHE). After an interruption the same command continues where it stopped.

    Exit status: 0 all experiments were run; 2 one of them could not be run (it is named, and the
    results hold the others).
    """
    check_extras()
    from labelleak.lab import paper
    from labelleak.lab.sources import PUBLISHED_SOURCES, find_sources
    from labelleak.lab.store import FILE_NAME
    from labelleak.lab.summary import summarize
    from labelleak.report.pages import held_to_schema
    from labelleak.report.run import run_content, write_run

    sources = PUBLISHED_SOURCES if scale == "smoke" else find_sources(place.data_dir)
    folder = Path("labelleak-runs") / f"{name}-{scale}" if out is None else out
    title = f"Reproduction of iLRG, {name}, scale {scale}"
    summaries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    found: frozenset[str] | None = None
    page = folder / "report.html"
    target = console()
    for study_name in NAMES if name == "all" else (name,):
        study = paper.study(study_name, scale, sources)
        outcome = run_experiments(study.experiments, folder, place)
        failed |= outcome.failed
        # Studies share trials: what another one of this run has made is not from before.
        found = outcome.found if found is None else found
        with held_to_schema(folder / FILE_NAME):
            summaries.append(summarize(study, outcome.records, found=found))
        # After each, so that a run that is stopped has a page of what it finished.
        page = write_run(folder, title, summaries)
        if output_format == "table":
            print_study(summaries[-1], target, explained=len(summaries) > 1)
    if output_format == "json":
        click.echo(json.dumps(run_content(title, summaries), indent=2, allow_nan=False))
    else:
        target.print(f"Page: {page}", soft_wrap=True)
    return ExitStatus.UNUSABLE if failed else 0
