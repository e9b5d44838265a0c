"""The results of a run of experiments as files: ``summary.json``, a CSV file per study, a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelleak.errors import UnreadableFile
from labelleak.report.experiments import study_page, summary_csv
from labelleak.storage import read_json, write_json, write_whole

RUN_SCHEMA = "labelleak/run/1"
"""Name and version of ``summary.json``: ``{"schema", "title", "studies": [summary, ...]}``."""

STUDY_SCHEMA = "labelleak/study/1"
"""Name and version of a summary, as `labelleak.lab.summary` makes it."""


def run_content(title: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        title: Heading of the page.
        summaries: Summary of each study, see `labelleak.lab.summary`.
    """
    return {"schema": RUN_SCHEMA, "title": title, "studies": list(summaries)}


def write_run(folder: Path, title: str, summaries: Sequence[dict[str, Any]]) -> Path:
    """Write the results of a run: ``summary.json``, a CSV file per study, and ``report.html``.

    Args:
        folder: The run's folder.
        title: Heading of the page.
        summaries: Summary of each study, see `labelleak.lab.summary`.

    Returns:
        The path of the page.

    Raises:
        UnreadableFile: The folder cannot be written to.
    """
    page = folder / "report.html"
    # All texts are made first, so that a summary that cannot be shown changes no file.
    files = {folder / f"{summary['name']}.csv": summary_csv(summary) for summary in summaries}
    files[page] = study_page(summaries, title, folder)
    write_json(folder / "summary.json", run_content(title, summaries))
    for path, text in files.items():
        write_whole(path, text)
    return page


def read_run(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Read the summary of a run.

    Args:
        path: The file ``summary.json``.

    Returns:
        The heading, and the summary of each study. Only schemas and names are checked.

    Raises:
        UnreadableFile: The file holds no summary of a run, or one of another schema version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != RUN_SCHEMA:
        raise UnreadableFile(f"{path}: is no summary of a run of schema {RUN_SCHEMA!r}")
    studies = content.get("studies")
    if not isinstance(studies, list) or not all(
        isinstance(study, dict) and study.get("schema") == STUDY_SCHEMA for study in studies
    ):
        raise UnreadableFile(f"{path}: has studies of another schema than {STUDY_SCHEMA!r}")
    for study in studies:
        # Files are named by it, and a stranger may have made the summary.
        name = study.get("name")
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise UnreadableFile(f"{path}: study {name!r} has a name that no file can have")
    return str(content.get("title")), studies
