"""``labelleak demo``: an audit of a real batch from the update to the page."""

import os
import sys
from pathlib import Path
from shutil import which

import click

from labelleak.cli.console import console, progress_bar
from labelleak.cli.options import PathOption
from labelleak.cli.tables import print_scores
from labelleak.cli.verdicts import print_record
from labelleak.storage import write_json, write_whole


@click.command("demo")
@click.option(
    "--out",
    type=PathOption("folder"),
    default=Path("labelleak-demo"),
    show_default=True,
    help="Folder for the model, the update, the records and the page.",
)
def demo_command(out: Path) -> None:
    """Audit an update made from real digits; no download.

    Trains a small network for one step on a batch of the embedded MNIST sample, audits the update
    as the server would, and shows the restored counts beside the true ones and the score of every
    attack. Writes model.safetensors, gradients.safetensors, weights.safetensors and labels.txt, one
    record per attack, and the page report.html.
    """
    from labelleak.lab.demo import audit_files, run_client

    # Imported before the work, so that a missing extra is named at once.
    from labelleak.report.audit import audit_page

    files = run_client(out)
    records = []
    with progress_bar() as bar:
        task = bar.add_task("Auditing", total=None)
        for record in audit_files(files):
            records.append(record.as_dict())
            bar.advance(task)
    strongest, others = records[0], records[1:]
    write_json(out / "record.json", strongest)
    for other in others:
        write_json(out / f"record-{other['attack']}.json", other)
    page = out / "report.html"
    command = files.command(" \\\n  ")
    write_whole(page, audit_page(strongest, others, description=files.description, command=command))

    target = console()
    target.print(f"A client trained on {files.description}.")
    target.print("The server sees the model before and the weights after, and restores:\n")
    print_record(strongest, target)
    print_scores(others, target)
    target.print(f"Page: {page}", soft_wrap=True)
    target.print("Repeat the audit by hand:")
    click.echo(f"  {_program()}{files.command().removeprefix('labelleak')}")


def _program() -> str:
    """The name to call this program by: `make demo` installs it into .venv, which is on no PATH."""
    called = Path(sys.argv[0])
    hidden = called.name == "labelleak" and not which("labelleak")
    return os.path.relpath(called) if hidden else "labelleak"
