import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import labelleak
from labelleak.lab.code_version import code_files, code_hash

SOURCE = Path(labelleak.__file__).parent


def test_hashes():
    assert len(code_hash()) == 16
    assert code_hash(images=True) != code_hash()
    assert "inversion/methods.py" in code_files(images=True)
    assert "inversion/methods.py" not in code_files(images=False)


# Modules that are imported by one that matters, and cannot change a record.
ELSEWHERE = {
    "__init__.py",
    "errors.py",
    "federated/__init__.py",
    "lab/code_version.py",
    "lab/datasets/__init__.py",
    "lab/datasets/cache.py",
    "lab/definition.py",
    "lab/fields.py",
    "lab/image_reconstruction.py",
    "lab/keys.py",
    "lab/materials.py",
    "lab/store.py",
    "lab/threads.py",
    "plugins/__init__.py",
    "updates/files.py",
    "updates/limits.py",
    "updates/reading.py",
}


@pytest.mark.parametrize("name", code_files(images=False))
def test_what_matters_imports_nothing_that_is_left_out(name):
    imported = set()
    for node in ast.walk(ast.parse((SOURCE / name).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("labelleak"):
            imported |= {file_of(node.module, alias.name) for alias in node.names}
    assert imported <= {*code_files(images=False), *ELSEWHERE}


def file_of(module, name):
    """The file that ``from module import name`` reads."""
    parent = importlib.import_module(module)
    inside = {found.name for found in pkgutil.iter_modules(getattr(parent, "__path__", []))}
    path = Path(importlib.import_module(f"{module}.{name}" if name in inside else module).__file__)
    return path.relative_to(SOURCE).as_posix()
