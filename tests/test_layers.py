"""The rooms of the package import downward only, and `import labelleak` stays light."""

import ast
import graphlib
import importlib
import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import labelleak

SOURCE = Path(labelleak.__file__).parent

# Room -> the rooms it may import, in the order of the house: only rooms further up are allowed.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "hooks": set(),
    "isolation": set(),
    "displays": set(),
    "plugins": {"errors"},
    "storage": {"errors"},
    "numerics": {"errors"},
    "checks": {"errors", "numerics"},
    "projection": set(),
    "restoration": {"errors", "displays"},
    "loss": {"errors", "checks"},
    "training": {"errors", "checks"},
    "local_steps": {"loss", "training"},
    "observation": {"errors", "displays", "checks", "numerics", "loss", "training"},
}
GROUND = set(ALLOWED)
ALLOWED["guess"] = set()
ALLOWED["similarity"] = set()
ALLOWED["cells"] = {"restoration"}
ALLOWED["shares"] = {"restoration"}
ALLOWED["metrics"] = {"errors", "displays", "restoration", "guess", "cells", "shares"}
ALLOWED["updates"] = set(GROUND)
ALLOWED["defenses"] = set(GROUND)
ALLOWED["attacks"] = set(GROUND)
MEASURES = {"guess", "cells", "similarity", "shares", "metrics"}
ALLOWED["__init__"] = {*GROUND, *MEASURES, "updates", "defenses", "attacks"}
ALLOWED["audit"] = {*GROUND, *MEASURES, "attacks"}
ALLOWED["inversion"] = {*GROUND, "metrics", "updates", "attacks"}
ALLOWED["federated"] = {*GROUND, *MEASURES, "updates", "defenses", "attacks", "audit"}
ALLOWED["advice"] = {*ALLOWED["federated"], "federated"}
# Below are the rooms that read what strangers sent: none of them can name a loss to import.
ALLOWED["loss_plugins"] = {"errors", "loss", "plugins"}
ALLOWED["lab"] = set(ALLOWED)
# Views of records: nothing is computed there.
ALLOWED["report"] = {"errors", "_version", "storage"}
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__main__"] = {"cli"}


def module_names(source: Path) -> dict[str, Path]:
    """Dotted name -> file of every module below the package."""
    names = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        names[".".join(("labelleak", *parts))] = path
    return names


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(tree: ast.Module, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name that is no module comes from the module it is imported from.
            found |= {name if name in modules else str(node.module) for name in submodules}
    return {name for name in found if name.split(".")[0] == "labelleak"}


MODULES = module_names(SOURCE)
IMPORTS = {name: imports_of(ast.parse(path.read_text()), MODULES) for name, path in MODULES.items()}


def test_the_table_leads_downwards_only() -> None:
    above: set[str] = set()
    for room, allowed in ALLOWED.items():
        assert allowed <= above, f"{room} may not import {sorted(allowed - above)}: below it"
        above.add(room)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module: str) -> None:
    room = room_of(module)
    assert room in ALLOWED, f"unknown room {room!r}: add it to ALLOWED in {Path(__file__).name}"
    imported = {room_of(name) for name in IMPORTS[module]} - {room}
    assert imported <= ALLOWED[room], (
        f"{module} imports {sorted(imported - ALLOWED[room])}, and {room} may import "
        f"{sorted(ALLOWED[room])} only"
    )


def test_modules_import_in_no_circles() -> None:
    graph = {name: imported - {name} for name, imported in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import labelleak.errors", {"labelleak.errors"}),
        ("from labelleak import lab", {"labelleak.lab"}),
        ("from labelleak import restore", {"labelleak"}),
        (
            "from labelleak.lab.datasets import idx, load",
            {"labelleak.lab.datasets.idx", "labelleak.lab.datasets"},
        ),
        ("def f():\n    from labelleak.errors import LabelLeakError", {"labelleak.errors"}),
        ("import labelleaks, torch", set()),
    ],
)
def test_imports_are_seen(line: str, expected: set[str]) -> None:
    modules = dict.fromkeys(
        [
            "labelleak.errors",
            "labelleak.lab",
            "labelleak.lab.datasets",
            "labelleak.lab.datasets.idx",
        ],
        SOURCE,
    )
    assert imports_of(ast.parse(line), modules) == expected


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="absolute"):
        imports_of(ast.parse("from .errors import LabelLeakError"), {})


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement, without the standard library."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    return {name.split(".")[0] for name in json.loads(output)} - sys.stdlib_module_names


def test_the_package_alone_loads_nothing() -> None:
    assert loaded_by("import labelleak") - loaded_by("pass") == {"labelleak"}


def test_its_names_are_light() -> None:
    loaded = loaded_by("from labelleak import *")
    assert {"labelleak", "torch", "scipy", "numpy", "jaxtyping"} <= loaded
    heavy = {"click", "rich", "matplotlib", "pandas", "flwr", "safetensors", "datasets", "PIL"}
    assert not loaded & heavy
    brought_along = loaded_by("import torch, numpy, jaxtyping, scipy.linalg, scipy.optimize")
    assert loaded - brought_along == {"labelleak"}


def test_public_names_are_sorted_and_there() -> None:
    names = labelleak.__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(labelleak, name)] == []
    assert set(names) <= set(dir(labelleak))


def test_names_are_loaded_from_where_type_checkers_see_them() -> None:
    """Three lists say what is public: what is exported, what is loaded, and what is declared."""
    tree = ast.parse(Path(labelleak.__file__).read_text())
    declared = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if str(node.module).startswith("labelleak.")
    }
    assert set(declared) == set(labelleak.__all__)
    for name, module in declared.items():
        assert getattr(labelleak, name) is getattr(importlib.import_module(str(module)), name)


def test_names_survive_pickling() -> None:
    for name in labelleak.__all__:
        value = getattr(labelleak, name)
        assert pickle.loads(pickle.dumps(value)) is value or name == "__version__"


def test_modules_are_found_without_being_imported_first() -> None:
    program = "import labelleak; print(labelleak.defenses.__name__, labelleak.attacks.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["labelleak.defenses", "labelleak.attacks"]


def test_what_is_not_there_is_not_found() -> None:
    assert not hasattr(labelleak, "nothing")
    assert not hasattr(labelleak, "__wrapped__")
    with pytest.raises(ImportError, match="nothing"):
        exec("from labelleak import nothing")


def test_version_is_the_installed_one() -> None:
    assert labelleak.__version__ == importlib.metadata.version("labelleak")
