"""Small files, written whole or not at all; every error is one line that names the file."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from labelleak.errors import UnreadableFile


def check_writable(path: Path | str, inputs: Sequence[Path | str] = ()) -> None:
    """Check before any work that `write_whole` will be able to write a file.

    Args:
        path: The file to write; it may exist.
        inputs: Files that must not be overwritten.

    Raises:
        UnreadableFile: The file cannot be written, or is one of the inputs.
    """
    with _writing(path) as (place, partial):
        for other in map(Path, inputs):
            if place.exists() and other.exists() and place.samefile(other):
                raise UnreadableFile(f"{path}: is read here, and would be overwritten")
        partial.touch()
        partial.unlink()


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        content: Text, which is written as UTF-8 with its line breaks as they are, or bytes.

    Raises:
        UnreadableFile: It cannot be written.
    """
    with _writing(path) as (place, partial):
        # The name of a file on Linux may hold bytes that are no UTF-8.
        data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
        partial.write_bytes(data)
        partial.replace(place)


@contextmanager
def _writing(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """The file that a path leads to, and a file beside it to write first; errors in one line."""
    try:
        # Of a link the target is written, and the link stays.
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            raise ValueError("it is a folder" if place.is_dir() else "it is no regular file")
        partial = place.with_name(f".labelleak-{os.getpid()}.partial")
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: cannot be written: {_reason(error)}") from None
    try:
        yield place, partial
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be written: {_reason(error)}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        content: Plain data.

    Raises:
        UnreadableFile: The file cannot be written.
        ValueError: A number is NaN or infinite, which JSON has no word for.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Args:
        path: The file, UTF-8.

    Raises:
        UnreadableFile: There is no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UnreadableFile(f"{path}: is not JSON") from None
