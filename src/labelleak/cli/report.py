"""``labelleak report``: pages and tables from the JSON that they are made of."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from labelleak.audit.record import read_record
from labelleak.cli.output import PathOption
from labelleak.cli.running import RUN_SCHEMA, write_results
from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.storage import check_writable, read_json, write_whole

_STUDY_SCHEMA = "labelleak/study/1"


@click.command()
@click.argument("path", metavar="RUN_DIR|RECORDS|RECORD.json", type=PathOption("file or folder"))
@click.option(
    "--out",
    type=PathOption("file"),
    metavar="PAGE.html",
    help="Where the page goes; the page of a run stays in its folder.",
)
def report(path: Path, out: Path | None) -> None:
    """Write the page of a run, of a federation, or of one audit.

    RUN_DIR is the folder of a run of `reproduce` or `compare`: its report.html and CSV files are
    made from its summary.json. RECORDS is the folder that a federation's audits are written to, or
    one .jsonl file of it: what each client gave away in each round, as report.html there.
    RECORD.json is what `audit --output` or `demo` wrote: its page is written beside it, as
    RECORD.html.
    """
    if (path.is_dir() and (path / "summary.json").exists()) or path.name == "summary.json":
        if out is not None:
            raise click.UsageError("--out: the page and tables of a run stay in its folder")
        page = _run_page(path / "summary.json" if path.is_dir() else path)
    elif path.is_dir() or path.suffix == ".jsonl":
        page = _rounds_page(path, out)
    else:
        page = _audit_page(path, out)
    click.echo(f"Page: {page}")


def _run_page(source: Path) -> Path:
    title, studies = _read_run(source)
    with _as_its_schema_says(source):
        return write_results(source.parent, title, studies)


def _rounds_page(path: Path, out: Path | None) -> Path:
    from labelleak.federated.rounds import read_rounds
    from labelleak.report import rounds_page

    page = out or (path / "report.html" if path.is_dir() else path.with_suffix(".html"))
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", UserWarning)
        records = read_rounds(path)
    for notice in notices:
        click.echo(f"labelleak: {notice.message}", err=True)
    check_writable(page, [path] if path.is_file() else list(path.glob("*.jsonl")))
    with _as_its_schema_says(path):
        text = rounds_page(records)
    write_whole(page, text)
    return page


def _audit_page(path: Path, out: Path | None) -> Path:
    from labelleak.report import audit_page

    record, page = read_record(path), out or path.with_suffix(".html")
    check_writable(page, [path])
    with _as_its_schema_says(path):
        text = audit_page(record, [])
    write_whole(page, text)
    return page


def _read_run(path: Path) -> tuple[str, list[dict[str, Any]]]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != RUN_SCHEMA:
        raise UnreadableFile(f"{path}: is no summary of a run of schema {RUN_SCHEMA!r}")
    studies = content.get("studies")
    if not isinstance(studies, list) or not all(
        isinstance(study, dict) and study.get("schema") == _STUDY_SCHEMA for study in studies
    ):
        raise UnreadableFile(f"{path}: has studies of another schema than {_STUDY_SCHEMA!r}")
    for study in studies:
        # Files are named by it, and the summary may be from somewhere else.
        name = study.get("name")
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise UnreadableFile(f"{path}: study {name!r} has a name that no file can have")
    return str(content.get("title")), studies


@contextmanager
def _as_its_schema_says(path: Path) -> Iterator[None]:
    """One line where a page cannot be made of what a file holds."""
    from jinja2 import TemplateError

    try:
        yield
    except LabelLeakError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise UnreadableFile(
            f"{path}: does not hold what its schema says ({type(error).__name__}: {error})"
        ) from None
