"""A cache on disk for arrays that are slow to make: image folders, CIFAR batches."""

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "LABELLEAK_CACHE"
# Part of every key: raise it when the stored arrays change their meaning.
_FORMAT = 1

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """The folder of the cache: the environment variable LABELLEAK_CACHE, or ~/.cache/labelleak.

    Raises:
        RuntimeError: the variable is not set and there is no home folder.
    """
    set_folder = os.environ.get(CACHE_VARIABLE)
    return Path(set_folder) if set_folder else Path.home() / ".cache" / "labelleak"


def remembered(name: str, fingerprint: Iterable[object], build: Callable[[], Arrays]) -> Arrays:
    """Load arrays from the cache, or build them and store them there.

    If the cache cannot be read or written, the arrays are built, with a warning.

    Args:
        name: readable start of the file's name.
        fingerprint: everything the arrays depend on, by its repr: names, sizes, mtimes of sources.
        build: makes the arrays (no objects in them).

    Returns:
        The arrays by name.
    """
    digest = hashlib.sha256(repr(_FORMAT).encode())
    for part in fingerprint:
        digest.update(repr(part).encode("utf-8", "backslashreplace") + b"\n")
    file_name = f"{name}-{digest.hexdigest()[:20]}.npz"
    try:
        # opened here, because np.load leaves a file open that it cannot read
        with (cache_folder() / file_name).open("rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("cannot read the cache, going on without it: %s", error)
    arrays = build()
    try:
        _write(cache_folder() / file_name, arrays)
    except (OSError, RuntimeError) as error:
        _log.warning("cannot write the cache, going on without it: %s", error)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    """Write under another name first, so that a reader never sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            # not compressed: that would take longer than decoding the images again
            np.savez(file, allow_pickle=False, **arrays)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
