"""``labelleak compare``: a grid of experiments of the user's own."""

import json
from pathlib import Path

import click

from labelleak.cli.console import console
from labelleak.cli.experiments import Place, check_extras, run_experiments
from labelleak.cli.options import (
    PathOption,
    format_option,
    gathered,
    module_dir_option,
    time_limit_option,
)
from labelleak.cli.status import ExitStatus
from labelleak.cli.tables import print_comparison


@click.command("compare")
@click.argument("grid", type=PathOption("file"))
@click.option(
    "--out",
    type=PathOption("folder"),
    help="Folder for the records and the report. Default: labelleak-runs/<name of the grid>.",
)
@module_dir_option
@time_limit_option
@gathered(Place, "place")
@format_option
def compare_command(
    grid: Path,
    out: Path | None,
    time_limit: float | None,
    place: Place,
    output_format: str,
) -> int:
    """Compare attacks and defenses on a grid of your own.

    GRID is a TOML file with a table [defaults], tables [[experiment]], and a table [grid] of
    alternatives. Every combination of them is run:

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

    Attacks, defenses, networks, data sets and losses may be plug-ins: entry points of installed
    packages by their name, or module:name. A grid that names them runs their code.

    Writes records.jsonl, summary.json, a CSV file, report.html and a copy of the grid. After an
    interruption the same command continues where it stopped. Trials that another version of the
    code has run are run again; their records are kept.

    Batches and networks are of the range "evaluation" unless the grid says range = "development"
    or range = "all". The first two share no seed and no sample: choose settings on one of them, and
    report the other.

    Exit status: 0 all experiments were run; 2 one of them could not be run (it is named, and the
    results hold the others).
    """  # noqa: D301
    check_extras()
    from labelleak.lab.experiment_grid import grid_study, read_grid
    from labelleak.lab.store import FILE_NAME
    from labelleak.lab.summary import summarize
    from labelleak.report.pages import held_to_schema
    from labelleak.report.run import write_run
    from labelleak.storage import write_whole

    experiments = read_grid(grid)
    text = grid.read_text(encoding="utf-8")
    if time_limit is not None:
        limited = {"time_limit": time_limit}
        experiments = [experiment.model_copy(update=limited) for experiment in experiments]
    folder = Path("labelleak-runs") / grid.stem if out is None else out
    outcome = run_experiments(experiments, folder, place)
    title = f"Comparison: {grid.stem}"
    with held_to_schema(folder / FILE_NAME):
        study = grid_study(experiments, grid.stem, title)
        summary = summarize(study, outcome.records, found=outcome.found)
    write_whole(folder / "grid.toml", text)
    page = write_run(folder, title, [summary])
    if output_format == "json":
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        target = console()
        print_comparison(summary, target)
        target.print(f"Page: {page}", soft_wrap=True)
    return ExitStatus.UNUSABLE if outcome.failed else 0
