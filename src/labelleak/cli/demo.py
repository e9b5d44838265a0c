"""``labelleak demo``: the whole path on a real batch, with a page to open."""

import os
import sys
from pathlib import Path
from shutil import which

import click
from rich.progress import Progress

from labelleak.cli.output import PathOption, console, print_record, scores_table
from labelleak.lab.demo import audit_files, run_client
from labelleak.storage import write_json, write_whole


@click.command()
@click.option(
    "--out",
    type=PathOption("folder"),
    default=Path("labelleak-demo"),
    show_default=True,
    help="Folder for the model, the update, the records and the page.",
)
def demo(out: Path) -> None:
    """Audit an update made from real digits; no download.

    Trains a small network one step on a batch of the embedded MNIST sample, audits the update as
    the server would, and shows true against restored counts and every attack's score. Writes the
    model and update files, one record per attack, and the page report.html.
    """
    # Before the work: a missing extra is told at once.
    from labelleak.report import audit_page

    target = console()
    files = run_client(out)
    records = []
    with Progress(console=target, transient=True) as progress:
        task = progress.add_task("Auditing", total=None)
        for record in audit_files(files):
            records.append(record.as_dict())
            progress.advance(task)
    strongest, others = records[0], records[1:]
    write_json(out / "record.json", strongest)
    for other in others:
        write_json(out / f"record-{other['attack']}.json", other)
    page = out / "report.html"
    command = files.command(" \\\n  ")
    write_whole(page, audit_page(strongest, others, description=files.description, command=command))

    target.print(f"A client trained on {files.description}.")
    target.print("The server sees the model before and the weights after, and restores:\n")
    print_record(strongest, target)
    target.print(scores_table(others))
    target.print(f"Page: {page}", soft_wrap=True)
    target.print("Repeat the audit by hand:")
    # `make demo` installs into .venv, which is on no path.
    called = Path(sys.argv[0])
    hidden = called.name == "labelleak" and not which("labelleak")
    program = os.path.relpath(called) if hidden else "labelleak"
    click.echo(f"  {program}{files.command().removeprefix('labelleak')}")
