"""What the commands that run experiments share: options, progress, interruption, results."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labelleak.cli.output import PathOption
from labelleak.storage import write_json, write_whole

if TYPE_CHECKING:
    from labelleak.lab.definition import Experiment

RUN_SCHEMA = "labelleak/run/1"
"""Name and version of ``summary.json``: ``{"schema", "title", "studies": [summary, ...]}``."""

_INTERRUPTED = 130
_TELL_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """Where experiments run, as the options say."""

    data_dir: Path | None
    workers: int | None
    dask: str | None
    device: str

    def __post_init__(self) -> None:
        if self.dask is not None and self.workers is not None:
            raise click.UsageError(
                "--workers is the number of processes on this machine, and --dask has its own: "
                "give one of them"
            )


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--data-dir``, ``--workers``, ``--dask`` and ``--device``."""
    for option in reversed(
        [
            click.option(
                "--data-dir",
                type=PathOption("folder"),
                help="Where the data sets are. Default: LABELLEAK_DATA, then a download.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=1),
                help="Processes on this machine. Default: one per core.",
            ),
            click.option(
                "--dask",
                metavar="ADDRESS",
                help="Run on this Dask scheduler instead, such as tcp://host:8786.",
            ),
            click.option(
                "--device",
                type=click.Choice(["cpu", "cuda"]),
                default="cpu",
                show_default=True,
                help="Where networks run. Results are the same bit for bit on the CPU only.",
            ),
        ]
    ):
        command = option(command)
    return command


def check_extras() -> None:
    """Import what running experiments and showing them needs, before any work.

    Raises:
        ModuleNotFoundError: It is not installed; the entry point names the extra.
    """
    import labelleak.lab.definition
    import labelleak.lab.runner
    import labelleak.report  # noqa: F401


def run_experiments(
    experiments: Sequence["Experiment"], folder: Path, place: Place
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run what the folder does not hold yet, with a progress bar on standard error.

    An interruption (Ctrl-C) ends the command with one line that says how to go on. An experiment
    that could not be run is named on standard error.

    Args:
        experiments: What to run.
        folder: The run's folder.
        place: Where to run it.

    Returns:
        All records of the folder; name of each experiment that could not be run, and why.

    Raises:
        LabelLeakError: See `labelleak.lab.runner.run`.
    """
    from labelleak.lab.runner import run
    from labelleak.lab.store import Store, read_records

    with Store(folder) as store:
        try:
            with _progress() as bar:
                tasks = {}

                told = time.monotonic()

                def tell(what: str, done: int, total: int) -> None:
                    nonlocal told
                    if what not in tasks:
                        tasks[what] = bar.add_task(what)
                    bar.update(tasks[what], completed=done, total=total)
                    if bar.disable and time.monotonic() - told > _TELL_SECONDS:
                        told = time.monotonic()
                        click.echo(f"{what}: {done} of {total}", err=True)

                summary = run(
                    experiments,
                    store,
                    data_dir=place.data_dir,
                    workers=place.workers,
                    dask=place.dask,
                    device=place.device,
                    progress=tell,
                )
        except KeyboardInterrupt:
            # Of the file: the interruption may have come between it and the store's own count.
            kept = len(read_records(store.path))
            click.echo(
                f"Interrupted: {kept} trials are kept in {store.path}; the same command goes on "
                "from there.",
                err=True,
            )
            sys.exit(_INTERRUPTED)
        for name, reason in summary.failed.items():
            click.echo(f"labelleak: experiment {name!r} could not be run: {reason}", err=True)
        return store.records(), summary.failed


def _progress() -> Progress:
    target = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=target,
        transient=True,
        # Without a terminal it would leave an empty line and nothing else; lines tell instead.
        disable=not target.is_terminal,
    )


def write_results(folder: Path, title: str, summaries: Sequence[dict[str, Any]]) -> Path:
    """Write what a run came to: ``summary.json``, a CSV file per study, and a page.

    Args:
        folder: The run's folder.
        title: Heading of the page.
        summaries: Of each study, see `labelleak.lab.summary.summarize`.

    Returns:
        The page, ``report.html``.

    Raises:
        UnreadableFile: The folder cannot be written to.
    """
    from labelleak.report import study_page, summary_csv

    content = {"schema": RUN_SCHEMA, "title": title, "studies": list(summaries)}
    page = folder / "report.html"
    files = {folder / f"{summary['name']}.csv": summary_csv(summary) for summary in summaries}
    files[page] = study_page(summaries, title, folder)
    write_json(folder / "summary.json", content)
    for path, text in files.items():
        write_whole(path, text)
    return page
