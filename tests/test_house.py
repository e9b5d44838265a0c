"""File sizes, names that mean one thing, and the paths that the API page prints."""

import ast
import builtins
import importlib
import re
import symtable
import warnings
from pathlib import Path

import pytest

import labelleak

ROOT = Path(__file__).parent.parent
SOURCE = Path(labelleak.__file__).parent
MOST_LINES = 400


def modules():
    """Dotted name -> syntax tree of every module of the package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def documented():
    """Paths that the API page prints."""
    return re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def imported(path):
    """What ``import path`` or ``from module import name`` gives."""
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings(action="ignore"):
        parent = importlib.import_module(module)
        return getattr(parent, name) if hasattr(parent, name) else importlib.import_module(path)


def test_no_file_is_too_long_to_read():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("src", "tests", "benchmarks", "examples", "docs/hooks")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lengths) > 200
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def scopes(table):
    """A scope of names and all those in it."""
    yield table
    for inner in table.get_children():
        yield from scopes(inner)


@pytest.mark.parametrize("folder", ["src", "benchmarks", "examples"])
def test_every_name_is_defined(folder):
    """Linters leave that out, as jaxtyping's shapes are strings of names that nothing defines."""
    undefined = set()
    for path in (ROOT / folder).rglob("*.py"):
        module = symtable.symtable(path.read_text(), str(path), "exec")
        known = {*dir(builtins), "__file__", "__name__"} | {
            one.get_name()
            for one in module.get_symbols()
            if one.is_assigned() or one.is_imported() or one.is_namespace()
        }
        undefined |= {
            f"{path.relative_to(ROOT)}: {one.get_name()}"
            for scope in scopes(module)
            for one in scope.get_symbols()
            if one.is_global() and one.is_referenced() and one.get_name() not in known
        }
    assert undefined == set()


def test_no_function_bears_the_name_of_a_package():
    packages = {path.parent.name for path in SOURCE.rglob("__init__.py")}
    assert {"labelleak", "attacks", "exact"} <= packages
    functions = {
        f"{module}.{node.name}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in packages
    }
    assert functions == set()


def test_the_api_page_prints_paths():
    assert len(documented()) > 30
    assert len(documented()) == len(set(documented()))


@pytest.mark.parametrize("path", documented())
def test_what_the_api_page_prints_can_be_imported(path):
    found, name = imported(path), path.rpartition(".")[2]
    if name in labelleak.__all__:
        assert found is getattr(labelleak, name)


@pytest.mark.parametrize("name", sorted({*labelleak.__all__} - {"__version__"}))
def test_every_public_name_is_on_the_api_page(name):
    """By its own path, or with all of a documented module."""
    public = getattr(labelleak, name)
    homes = [path for path in documented() if path in (f"labelleak.{name}", public.__module__)]
    assert homes, f"docs/api.md documents neither labelleak.{name} nor {public.__module__}"
