"""A hash of the code that a trial runs, so that a trial runs again when that code has changed."""

import hashlib
from functools import cache
from pathlib import Path

import labelleak
from labelleak.plugins import essence_of

_SOURCE = Path(labelleak.__file__).parent

# Everything between a definition and its record. Files and folders below the package.
_MATTERS = (
    "attacks",
    "cells.py",
    "checks.py",
    "defenses",
    "displays.py",
    "federated/local_training.py",
    "guess.py",
    "hooks.py",
    "isolation.py",
    "lab/datasets",
    "lab/earlier_rounds.py",
    "lab/materials.py",
    "lab/measures.py",
    "lab/networks",
    "lab/parts.py",
    "lab/pretraining.py",
    "lab/ranges.py",
    "lab/schedule.py",
    "lab/seeds.py",
    "lab/simulated_client.py",
    "lab/tasks.py",
    "lab/trial.py",
    "local_steps.py",
    "loss",
    "loss_plugins.py",
    "metrics.py",
    "numerics.py",
    "observation.py",
    "projection.py",
    "restoration.py",
    "shares.py",
    "similarity.py",
    "training.py",
    "updates",
)
_MATTERS_TO_IMAGES = ("inversion", "lab/image_reconstruction.py")
# Reading of files: no trial does that.
_NEVER = (
    "updates/_pickled.py",
    "updates/class_weights.py",
    "updates/files.py",
    "updates/limits.py",
    "updates/reading.py",
)


def code_files(*, images: bool) -> list[str]:
    """The files of the package whose code decides what a trial records.

    Args:
        images: Whether the trial restores images, too.

    Returns:
        Paths below the package, sorted.
    """
    found = set()
    for place in (*_MATTERS, *(_MATTERS_TO_IMAGES if images else ())):
        path = _SOURCE / place
        files = path.rglob("*.py") if path.is_dir() else [path]
        found |= {file.relative_to(_SOURCE).as_posix() for file in files}
    return sorted(found - set(_NEVER))


@cache
def code_hash(*, images: bool = False) -> str:
    """A hash of that code, without docstrings, comments and formatting.

    Plug-ins of other packages have hashes of their own, see `labelleak.plugins.Plugin`.

    Args:
        images: Whether the trial restores images, too.

    Returns:
        16 hexadecimal digits, the same for every version of Python.
    """
    digest = hashlib.sha256()
    for name in code_files(images=images):
        source = (_SOURCE / name).read_text(encoding="utf-8")
        digest.update(f"{name}:{essence_of(source)};".encode())
    return digest.hexdigest()[:16]
