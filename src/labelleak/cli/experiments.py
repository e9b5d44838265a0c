"""What commands that run experiments share: the options, the progress, the interruption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import click
from rich.progress import Progress, TaskID

from labelleak.cli.console import line_teller, progress_bar
from labelleak.cli.messages import one_line, tell
from labelleak.cli.options import PathOption, option

if TYPE_CHECKING:
    from labelleak.lab.definition import Experiment


@dataclass(frozen=True)
class Place:
    """Where experiments run and find their data."""

    data_dir: Annotated[
        Path | None,
        option(
            "--data-dir",
            type=PathOption("folder"),
            help="Folder of the data sets. Default: LABELLEAK_DATA, then a download.",
        ),
    ]
    workers: Annotated[
        int | None,
        option(
            "--workers",
            type=click.IntRange(min=1),
            help="Processes on this machine. Default: one per core.",
        ),
    ]
    dask: Annotated[
        str | None,
        option(
            "--dask",
            metavar="ADDRESS",
            help="Run on this Dask scheduler instead, such as tcp://host:8786.",
        ),
    ]
    device: Annotated[
        str,
        option(
            "--device",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            show_default=True,
            help="Device of the networks. Results are the same bit for bit on one kind of CPU.",
        ),
    ]

    def __post_init__(self) -> None:
        if self.dask is not None and self.workers is not None:
            raise click.UsageError(
                "--workers is the number of processes on this machine, and --dask has its own: "
                "give one of them"
            )


class Outcome(NamedTuple):
    """What a folder holds after a run.

    Attributes:
        records: All records of the folder.
        failed: The reason for each experiment that could not be run.
        found: Keys of the records that were there before.
    """

    records: list[dict[str, Any]]
    failed: dict[str, str]
    found: frozenset[str]


def check_extras() -> None:
    """Import before any work whatever running experiments and showing them needs.

    Raises:
        ModuleNotFoundError: A package is not installed; the entry point names its extra.
    """
    import labelleak.lab.definition
    import labelleak.lab.runner
    import labelleak.report.run  # noqa: F401


def run_experiments(experiments: Sequence["Experiment"], folder: Path, place: Place) -> Outcome:
    """Run the trials that the folder does not hold yet, with a progress bar on standard error.

    Experiments that could not be run are named on standard error.

    Args:
        experiments: What to run.
        folder: The run's folder.
        place: Where to run it.

    Returns:
        The records of the folder, and which experiments could not be run.

    Raises:
        LabelLeakError: See `labelleak.lab.runner.run`.
        KeyboardInterrupt: The run was interrupted (Ctrl-C); the message says how to continue.
    """
    from labelleak.lab.runner import run
    from labelleak.lab.store import Store, read_records

    with Store(folder) as store:
        before = frozenset(record["key"] for record in store.records())
        try:
            with progress_bar() as bar:
                summary = run(
                    experiments,
                    store,
                    data_dir=place.data_dir,
                    workers=place.workers,
                    dask=place.dask,
                    device=place.device,
                    progress=_teller(bar),
                )
        except KeyboardInterrupt:
            # Counted in the file: the store may not have counted the last record yet.
            kept = len(read_records(store.path))
            raise KeyboardInterrupt(
                f"interrupted: {kept} trials are kept in {store.path}; the same command continues "
                "from there"
            ) from None
        for name, reason in summary.failed.items():
            tell(f"labelleak: experiment {name!r} could not be run: {one_line(reason)}")
        return Outcome(store.records(), summary.failed, before)


def _teller(bar: Progress) -> Callable[[str, int, int], None]:
    """A function that moves the bar; where no bar is shown, it prints a line now and then."""
    tasks: dict[str, TaskID] = {}
    tell_line = line_teller(bar)

    def tell_progress(what: str, done: int, total: int) -> None:
        first = what not in tasks
        if first:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)
        tell_line(f"{what}: {done} of {total}", always=first or done == total)

    return tell_progress
