"""A hash of the code that a trial runs, so that a trial runs again when that code has changed."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import labelleak

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
    "lab/materials.py",
    "lab/measures.py",
    "lab/networks",
    "lab/pretraining.py",
    "lab/ranges.py",
    "lab/seeds.py",
    "lab/simulated_client.py",
    "lab/tasks.py",
    "lab/trial.py",
    "local_steps.py",
    "loss",
    "metrics.py",
    "numerics.py",
    "observation.py",
    "projection.py",
    "restoration.py",
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

    Attacks of other packages are no part of it.

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


def essence_of(source: str) -> str:
    """The syntax tree of a module as text, without docstrings.

    `ast.dump` gives other texts in other versions of Python, and so it is not used.

    Args:
        source: Text of the module.

    Returns:
        Kinds of nodes and their fields, those that are empty left out.
    """
    return "".join(_text(ast.parse(source)))


def _text(value: object) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name, field in ast.iter_fields(value):
            if field is not None and field != []:
                yield f" {name}="
                yield from _text(field)
        yield ")"
    elif isinstance(value, list):
        for one in value:
            if not _is_docstring(one):
                yield from _text(one)
                yield ","
    else:
        yield repr(value)


def _is_docstring(node: object) -> bool:
    """Whether it is a string that stands alone, which does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
