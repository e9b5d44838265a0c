"""``labelleak report``: pages and tables once more, from the JSON that they were made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from labelleak.cli.output import PathOption
from labelleak.cli.running import RUN_SCHEMA, write_results
from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.records import check_writable, read_json, read_record, write_whole

_STUDY_SCHEMA = "labelleak/study/1"


@click.command()
@click.argument("path", metavar="RUN_DIR|RECORD.json", type=PathOption("file or folder"))
def report(path: Path) -> None:
    """Write the page of a run or of one audit once more.

    RUN_DIR is the folder of a run of `reproduce` or `compare`: its report.html and CSV files are
    made from its summary.json. RECORD.json is what `audit --output` or `demo` wrote: its page is
    written beside it, as RECORD.html.
    """
    from labelleak.report import audit_page

    if path.is_dir() or path.name == "summary.json":
        source = path / "summary.json" if path.is_dir() else path
        title, studies = _read_run(source)
        with _as_its_schema_says(source):
            page = write_results(source.parent, title, studies)
    else:
        record, page = read_record(path), path.with_suffix(".html")
        check_writable(page, [path])
        with _as_its_schema_says(path):
            text = audit_page(record, [])
        write_whole(page, text)
    click.echo(f"Page: {page}")


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
