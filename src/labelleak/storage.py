"""Small files: written whole or not at all, and read back, with one clear error line."""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from secrets import token_hex
from typing import Any

from labelleak.errors import UnreadableFile

_MOST_JSON = 2**27
# Some million labels, which take a few seconds.
_MOST_WORDS = 2**24


def what_is_at(path: Path | str) -> str:
    """What a path leads to: ``"a file"``, ``"a folder"``, ``"a pipe"``, ``"a device"``, ...

    Returns:
        Its kind in words; empty where nothing is there.
    """
    try:
        return _kind(os.stat(path).st_mode)
    except (OSError, ValueError):
        return ""


def check_file(path: Path | str) -> None:
    """Make sure that a path leads to a regular file, which ends and does not wait.

    Raises:
        UnreadableFile: Nothing is there, or a folder, pipe, device or socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UnreadableFile(f"{path}: no such file") from None
    _check_mode(path, mode)


def read_whole(path: Path | str, most: int | None = None) -> bytes:
    """All that a regular file holds.

    Args:
        path: The file.
        most: The most bytes that are read; None for any number.

    Raises:
        UnreadableFile: There is no such file, it cannot be read or is larger, or it is a folder,
            pipe, device or socket.
    """
    try:
        check_file(path)
        # What was a file a moment ago may be a pipe now, which must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | _flags_of("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"))
        with os.fdopen(descriptor, "rb") as file:
            _check_mode(path, os.fstat(descriptor).st_mode)
            content = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    if most is not None and len(content) > most:
        raise UnreadableFile(f"{path}: is too large: at most {most} bytes are read")
    return content


def _check_mode(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnreadableFile(f"{path}: is {_kind(mode)}, and no file")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def check_writable(path: Path | str, inputs: Sequence[Path | str] = ()) -> None:
    """Make sure, before any work, that `write_whole` can write a file.

    Args:
        path: The file to be; it may be there already.
        inputs: Files that must stay as they are.

    Raises:
        UnreadableFile: The file cannot be written, or is one of the inputs.
    """
    with _one_line(path):
        place = _place(path)
        for other in map(Path, inputs):
            if place.exists() and other.exists() and place.samefile(other):
                raise UnreadableFile(f"{path}: is read here, and would be overwritten")
        _partial(place, b"", private=True).unlink()


def write_whole(path: Path | str, content: str | bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all, from any number of threads and processes.

    Args:
        path: The file; one that is there is replaced. A link is replaced, too, and never followed:
            somebody else may have put it there.
        content: Its content; text is written as UTF-8, line breaks as they are.
        private: Let the owner alone read it, because it holds true counts.

    Raises:
        UnreadableFile: It cannot be written.
    """
    # A name of a file, on Linux, may hold bytes that are no UTF-8.
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    with _one_line(path):
        place = _place(path)
        partial = _partial(place, data, private)
        try:
            partial.replace(place)
        except BaseException:
            partial.unlink()
            raise


def append_line(folder: Path | str, name: str, line: bytes) -> Path:
    """Append a line to a file that its owner alone may read, from any threads and processes.

    Args:
        folder: The file's folder; made for its owner alone if it is not there.
        name: Name of the file in it; made if it is not there.
        line: The line, with its line break. What an interruption left of the line before stays a
            line of its own.

    Returns:
        The file.

    Raises:
        UnreadableFile: It cannot be written, or what is there was put there by somebody else: a
            link, another user's file, or anything that is no regular file.
    """
    folder, path = Path(folder), Path(folder, name)
    with _one_line(path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _flags("O_NONBLOCK")
        with os.fdopen(_opened_in(folder, name, flags), "r+b", buffering=0) as file:
            _make_private(file.fileno())
            _lock(file.fileno())
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if file.write(line) != len(line):
                raise OSError(0, "the disk took a part of the line only")
    return path


def _flags(*names: str) -> int:
    """Flags of `os.open` for a file to be written, which may be no link."""
    return _flags_of("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY", *names)


def _flags_of(*names: str) -> int:
    """Flags of `os.open`, of which not every system has all."""
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


def _opened_in(folder: Path, name: str, flags: int) -> int:
    """A file of a folder, opened without following a link; the folder is looked up once."""
    if os.open not in os.supports_dir_fd:
        return os.open(folder / name, flags | _flags(), 0o600)
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(name, flags | _flags(), 0o600, dir_fd=inside)
    finally:
        os.close(inside)


def _make_private(descriptor: int) -> None:
    """Let the owner alone read an open file.

    Raises:
        ValueError: It is not a regular file that this user made.
    """
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if not hasattr(os, "geteuid"):
        return
    if about.st_uid != os.geteuid() or about.st_nlink != 1:
        raise ValueError("it is another user's file, or has a second name")
    if stat.S_IMODE(about.st_mode) & 0o077:
        os.fchmod(descriptor, 0o600)


def _lock(descriptor: int) -> None:
    """Let no other thread or process append until the file is closed, where the system can."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass


@contextmanager
def _one_line(path: Path | str) -> Iterator[None]:
    """Errors of the file system in one line that names the file."""
    try:
        yield
    except UnreadableFile:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: cannot be written: {_reason(error)}") from None


def _place(path: Path | str) -> Path:
    place = Path(os.path.realpath(Path(path).parent), Path(path).name)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    return place


def _partial(place: Path, data: bytes, private: bool) -> Path:
    """A new file beside the one to be, under a name that nobody can foresee."""
    partial = place.with_name(f".labelleak-{token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flags()
    descriptor = os.open(partial, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        partial.unlink()
        raise
    return partial


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_json(path: Path | str, content: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: As of `write_whole`, as is `private`.
        content: Its content.
        private: Let the owner alone read it.

    Raises:
        UnreadableFile: The place cannot be written to.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n", private=private)


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        UnreadableFile: There is no such file, it holds anything else, or more than 128 MiB.
    """
    try:
        return json.loads(read_whole(path, _MOST_JSON).decode())
    except UnreadableFile:
        raise
    except (ValueError, RecursionError):
        raise UnreadableFile(f"{path}: is not JSON") from None


def read_words(path: Path | str, what: str) -> Iterator[tuple[int, str]]:
    """The words of a text file, separated by spaces, commas or line breaks.

    Args:
        path: The file, UTF-8, with or without a byte order mark, of at most 16 MiB.
        what: What the words are, for a message: ``"labels"``.

    Yields:
        The number of a line, from 1, and a word of it.

    Raises:
        UnreadableFile: There is no such file, it is larger or no text, or it holds no words.
    """
    try:
        text = read_whole(path, _MOST_WORDS).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: is no text file of {what}") from None
    if not text.replace(",", " ").strip():
        raise UnreadableFile(f"{path}: holds no {what}")
    for number, line in enumerate(StringIO(text, newline=None), start=1):
        for word in line.replace(",", " ").split():
            yield number, word


def read_numbers(path: Path | str, what: str, one: str, *, allows_zero: bool) -> list[float]:
    """The numbers of a text file, separated by spaces, commas or line breaks.

    Args:
        path: The file, see `read_words`.
        what: What the numbers are, for a message: ``"class weights"``.
        one: What one of them is: ``"class weight"``.
        allows_zero: Whether a number may be 0; it must not be below.

    Returns:
        The numbers in the order of the file, all finite.

    Raises:
        UnreadableFile: As of `read_words`, or a word is no such number. The message names the line.
    """
    numbers = []
    needed = "numbers of at least 0" if allows_zero else "positive numbers"
    for line, word in read_words(path, what):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not (number >= 0.0 if allows_zero else number > 0.0) or number == math.inf:
            raise UnreadableFile(
                f"{path}, line {line}: {word[:40]!r} is no {one}: {needed} are needed"
            )
        numbers.append(number)
    return numbers
