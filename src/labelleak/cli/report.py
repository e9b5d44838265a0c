"""``labelleak report``: pages and tables from the JSON that they are made of."""

import warnings
from pathlib import Path

import click

from labelleak.cli.messages import one_line, tell
from labelleak.cli.options import PathOption
from labelleak.storage import check_writable, read_json, write_whole


@click.command("report")
@click.argument("path", metavar="RUN_DIR|RECORDS|RECORD.json", type=PathOption("file or folder"))
@click.option(
    "--out",
    type=PathOption("file"),
    metavar="PAGE.html",
    help="File of the page; the page of a run stays in its folder.",
)
@click.option(
    "--officer",
    is_flag=True,
    help="Of one audit, the page for a data-protection officer: plain words, to print.",
)
def report_command(path: Path, out: Path | None, *, officer: bool) -> None:
    """Write the page of a run, of a federation, or of one audit.

    RUN_DIR is the folder of a run of `reproduce` or `compare`. Its report.html and CSV files are
    made again from its summary.json.

    RECORDS is the folder of a federation's audits, or one .jsonl file of it. The page, report.html
    there, shows what each client gave away in each round.

    RECORD.json is what `audit --output`, `advise --output` or `demo` wrote. Its page is written
    beside it, as RECORD.html; with --officer as RECORD-officer.html.
    """
    if officer and (path.is_dir() or path.suffix == ".jsonl" or path.name == "summary.json"):
        raise click.UsageError("--officer: goes with the record of one audit")
    if (path.is_dir() and (path / "summary.json").exists()) or path.name == "summary.json":
        if out is not None:
            raise click.UsageError("--out: the page and tables of a run stay in its folder")
        page = _write_run_page(path / "summary.json" if path.is_dir() else path)
    elif path.is_dir() or path.suffix == ".jsonl":
        page = _write_rounds_page(path, out)
    else:
        page = _write_audit_page(path, out, officer=officer)
    click.echo(f"Page: {page}")


def _write_run_page(source: Path) -> Path:
    from labelleak.report.pages import held_to_schema
    from labelleak.report.run import read_run, write_run

    title, studies = read_run(source)
    with held_to_schema(source):
        return write_run(source.parent, title, studies)


def _write_rounds_page(path: Path, out: Path | None) -> Path:
    from labelleak.federated.rounds import read_rounds
    from labelleak.report.rounds import rounds_page

    page = out or (path / "report.html" if path.is_dir() else path.with_suffix(".html"))
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", UserWarning)
        records = read_rounds(path)
    for notice in notices:
        tell(f"labelleak: {one_line(str(notice.message))}")
    check_writable(page, [path] if path.is_file() else list(path.glob("*.jsonl")))
    write_whole(page, rounds_page(records, source=path), private=True)
    return page


def _write_audit_page(path: Path, out: Path | None, *, officer: bool) -> Path:
    from labelleak.audit.record import read_record
    from labelleak.report.audit import audit_page
    from labelleak.report.officer import officer_page
    from labelleak.report.pages import held_to_schema
    from labelleak.report.text import advice_in

    content = read_json(path)
    advice = advice_in(content)
    record = read_record(path) if advice is None else advice["audit"]
    beside = path.with_name(f"{path.stem}-officer.html") if officer else path.with_suffix(".html")
    page = out or beside
    check_writable(page, [path])
    with held_to_schema(path):
        text = officer_page(record, advice) if officer else audit_page(record, [], advice=advice)
    write_whole(page, text, private=True)
    return page
