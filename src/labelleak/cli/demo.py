"""``labelleak demo``: the whole path on a real batch, with a page to open."""

from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from labelleak.cli.output import console, number, print_record
from labelleak.experiments.demo import audit_files, run_client
from labelleak.records import write_json


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("labelleak-demo"),
    show_default=True,
    help="Folder for the model, the update, the records and the page.",
)
def demo(out: Path) -> None:
    """Train one step on real digits, audit the update as the server would, and show what leaks.

    The batch is from the embedded MNIST sample: no download. Writes the model and update files,
    one record per attack and report.html.
    """
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
    page.write_text(
        audit_page(strongest, others, description=files.description, command=files.command()),
        encoding="utf-8",
    )

    target.print(f"A client trained on {files.description}.", highlight=False)
    target.print("The server sees the model before and the weights after, and restores:\n")
    print_record(strongest, target)
    target.print(_scores(others))
    target.print(f"Page: {page}", highlight=False, soft_wrap=True)
    target.print("Repeat the audit by hand:")
    click.echo(f"  {files.command()}")


def _scores(records: list[dict[str, object]]) -> Table:
    columns = {
        "accuracy": "accuracy", "exact": "exact", "leacc": "LeAcc", "lnacc": "LnAcc",
        "recall": "recall",
    }  # fmt: skip
    table = Table(
        title="Every attack on the same update",
        caption="LeAcc: classes rightly told present or absent; LnAcc: classes with the right "
        "number; -: the attack tells a set only",
    )
    table.add_column("attack")
    for title in columns.values():
        table.add_column(title, justify="right")
    for record in records:
        score = record["score"]
        assert isinstance(score, dict)
        table.add_row(str(record["attack"]), *(number(score[key]) for key in columns))
    return table
