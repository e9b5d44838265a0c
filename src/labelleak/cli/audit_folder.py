"""``labelleak audit`` of a folder: one verdict for each update in it."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.progress import Progress

from labelleak._version import __version__
from labelleak.cli.audit_options import UpdateOptions
from labelleak.cli.audit_request import AuditRequest
from labelleak.cli.console import line_teller, progress_bar
from labelleak.cli.messages import one_line
from labelleak.cli.status import ExitStatus
from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.storage import check_file, write_json

# Exit statuses, the gravest first: over the limit, unreadable, inconclusive, audited.
_GRAVITY = (1, ExitStatus.UNUSABLE, 3, 0)
_ENDINGS = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")


def audit_folder(
    request: AuditRequest,
    update: UpdateOptions,
    labels: Path | None,
    output: Path | None,
    output_format: str,
) -> int:
    """Audit every update in a folder, and print one line for each.

    Args:
        request: What holds for all of them.
        update: The folder, as `update.update`.
        labels: A folder with ``NAME.txt`` for ``NAME.safetensors``, or None.
        output: A folder for the records, ``NAME.safetensors.json``, made if it is not there. An
            update whose record is there already, of the same files, options and code, is not
            audited again. None: nothing is written.
        output_format: ``"json"`` for a record a line, or ``"table"`` for a verdict a line.

    Returns:
        The exit status: over the limit before unreadable before inconclusive before audited.

    Raises:
        UsageError: Labels or output are a file.
        UnreadableFile: There is no update in the folder.
    """
    for name, path in (("--labels", labels), ("--output", output)):
        if path is not None and path.exists() and not path.is_dir():
            raise click.UsageError(f"{name} {path}: of a folder of updates it is a folder, too")
    files = updates_in(update.update)
    if output is not None:
        output.mkdir(mode=0o700, parents=True, exist_ok=True)
    statuses = set[int]()
    with progress_bar() as bar, _interrupts() as interrupted:
        tell = line_teller(bar)
        task = bar.add_task("Auditing", total=len(files))
        of_attack = watched(request.attack, bar)
        for number, path in enumerate(files):
            place = None if output is None else output / f"{path.name}.json"
            one = replace(update, update=path)
            try:
                record, is_new = _record_of(
                    request, one, _labels_of(labels, path), place, of_attack
                )
            except LabelLeakError as error:
                is_new = False
                record = {"error": one_line(str(error)), "source": {"update": str(path)}}
            if interrupted:
                raise KeyboardInterrupt(
                    f"interrupted: {number} of {len(files)} updates are audited"
                )
            if place is not None and is_new:
                write_json(place, record, private=True)
            statuses.add(status_of(record))
            click.echo(_line(path, record, output_format))
            bar.advance(task)
            tell(f"{number + 1} of {len(files)} updates", always=False)
    return next(status for status in _GRAVITY if status in statuses)


def updates_in(folder: Path) -> list[Path]:
    """The files of a folder that may hold an update, by name; formats that are refused among them.

    Raises:
        UnreadableFile: There is none.
    """
    from labelleak.updates.files import REFUSED

    endings = (*_ENDINGS, *REFUSED)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not files:
        raise UnreadableFile(f"{folder}: holds no update ({', '.join(_ENDINGS)})")
    return files


def watched(attack: str, bar: Progress) -> dict[str, Any]:
    """Keyword arguments by which an attack shows its progress and updates share its work.

    Args:
        attack: Name of the attack; only ``"virtual"`` and ``"synthetic"`` take any.
        bar: Where the progress shows.
    """
    from labelleak.attacks.virtual import shared_by

    shared = shared_by(attack)
    if not shared:
        return {}
    task = bar.add_task("Virtual clients", total=None)

    def show(number: int, error: float) -> None:
        bar.update(task, completed=number)

    return {**shared, "progress": show}


def status_of(record: dict[str, Any]) -> int:
    """The exit status that a record stands for; one of an error is unusable."""
    from labelleak.audit.verdict import Verdict

    return ExitStatus.UNUSABLE if "error" in record else Verdict(record["verdict"]).exit_status


def _record_of(
    request: AuditRequest,
    update: UpdateOptions,
    labels: Path | None,
    place: Path | None,
    of_attack: dict[str, Any],
) -> tuple[dict[str, Any], bool]:
    """The record of an update: the one that is there, or a new one; and whether it is new."""
    read = request.inputs(update, labels)
    more = {
        "asked": repr((request, replace(update, update=Path()), labels, __version__)),
        "sha256": {str(path): _digest(path) for path in read},
        "code": request.code(),
    }
    if place is not None and (known := _known(place, more)) is not None:
        return known, False
    return request.run(update, labels, more, **of_attack).as_dict(), True


def _digest(path: Path) -> str:
    check_file(path)
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _known(place: Path, more: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier command, if it is of the same files, options, code and version."""
    from labelleak.audit.record import read_record

    # What an index names may have changed.
    if not place.exists() or any(path.endswith(".index.json") for path in more["sha256"]):
        return None
    record = read_record(place)
    source = record.get("source")
    same = isinstance(source, dict) and all(source.get(key) == more[key] for key in more)
    return record if same else None


def _labels_of(labels: Path | None, update: Path) -> Path | None:
    return None if labels is None else labels / f"{update.stem}.txt"


def _line(path: Path, record: dict[str, Any], output_format: str) -> str:
    if output_format == "json":
        return json.dumps(record)
    if "error" in record:
        return f"{one_line(path.name)}: not audited - {record['error']}"
    return f"{one_line(path.name)}: {record['verdict']} - {one_line(record['reason'])}"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note an interrupt as well as raise it: an attack may end with what it knows so far."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
