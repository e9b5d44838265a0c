"""The records of a run in a file: one line per trial, safe against interruption."""

import errno
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.storage import read_whole

FILE_NAME = "records.jsonl"
_SYNC_SECONDS = 1.0

Record = dict[str, Any]
"""The record of a trial: plain data in the format of `labelleak.lab.trial`."""


def read_records(path: Path | str) -> list[Record]:
    """Read the records of a run.

    Args:
        path: The file, or the folder of the run.

    Returns:
        The records in the order they were made, one per key. A last line that an interruption has
        cut off is left out.

    Raises:
        UnreadableFile: There is no such file, or a line in it is not a record.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    content = read_whole(path)
    return list(_parse(path, content[: content.rfind(b"\n") + 1]).values())


def _parse(path: Path, content: bytes) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
            records.setdefault(record["key"], record)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UnreadableFile(
                f"{path}: line {number} is not a record of a trial: delete that line, and its "
                "trial runs again"
            ) from None
    return records


class Store:
    """The records of one run, in ``records.jsonl`` of its folder.

    In a ``with`` statement it holds a lock, so that two runs never write to one file. If the
    process is killed, the file loses at most the line that was being written, and the next `Store`
    removes the rest of that line. A power cut may lose the last few lines.
    """

    def __init__(self, folder: Path | str) -> None:
        """Create a store without touching the disk.

        Args:
            folder: The run's folder; created on opening if it is missing.
        """
        self.path = Path(folder) / FILE_NAME
        self._records: dict[str, Record] = {}
        self._file: IO[bytes] | None = None
        self._synced = 0.0

    def __enter__(self) -> "Store":
        """Lock the file and read it.

        Raises:
            LabelLeakError: Another run writes to it.
            UnreadableFile: It cannot be read or written, or a line in it is not a record.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not "a": the rest of a torn line must be cut off.
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise UnreadableFile(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            if not _lock(file):
                raise LabelLeakError(
                    f"{self.path}: another run writes to it; wait for it, or choose another folder"
                )
            content = file.read()
            whole = content.rfind(b"\n") + 1
            self._records = _parse(self.path, content[:whole])
            file.truncate(whole)
            file.seek(whole)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, which releases the lock."""
        if self._file is not None:
            with self._file as file:
                self._file = None
                os.fsync(file.fileno())

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[Record]:
        """All records, in the order they were made."""
        return list(self._records.values())

    def append(self, record: Record) -> None:
        """Add a record permanently; a record whose key is already there is ignored.

        Args:
            record: Plain data with a ``key``. The contents of ``files``, by name, are written to
                files in the run's folder instead, before the record is.

        Raises:
            UnreadableFile: It cannot be written; the file is then as before.
            ValueError: The record holds NaN or an infinity, or the store is not open.
        """
        if self._file is None:
            raise ValueError("the store is not open: use it in a `with` statement")
        if record["key"] in self._records:
            return
        record = dict(record)
        self._write_files(record.pop("files", {}))
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        start = self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._sync()
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise UnreadableFile(f"{self.path}: cannot be written: {error.strerror}") from None
        self._records[record["key"]] = record

    def _write_files(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = self.path.parent / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise UnreadableFile(f"{path}: cannot be written: {error.strerror}") from None

    def _sync(self) -> None:
        """Flush to the disk, but not after every line: that takes longer than a trial."""
        now = time.monotonic()
        if self._file is not None and now - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = now


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        """Lock a byte far beyond the end, so that others can still read."""
        file.seek(2**40)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        file.seek(0)
        return True
else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
