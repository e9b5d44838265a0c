"""A hash of the source of a plug-in, so that what it computed is known to be of another version."""

import ast
import hashlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from labelleak.errors import BrokenPlugin

# Larger packages (torch, timm) are known by their version alone.
_MOST_FILES = 500
_NATIVE = (".so", ".pyd")
# Where a module's neighbors are strangers.
_INSTALLED = ("purelib", "platlib", "stdlib", "platstdlib")
_KEPT = "__labelleak_source__"


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


def source_hash(module: ModuleType, target: Callable[..., Any] | None = None) -> str:
    """A hash of the source that a plug-in was loaded from, without comments and docstrings.

    Of a module in a package these are all Python files of the package; of a lone module its file,
    and the modules beside it that it imports, and those that these import, unless they are
    installed. It is taken on the first call after the module was loaded or reloaded, and kept: a
    file that is changed later is not what runs in this process.

    Args:
        module: The module.
        target: What is taken from it; its own source counts where the module has no file, as in a
            notebook.

    Returns:
        16 hexadecimal digits, the same on every machine; empty for a package of more than 500
        files, whose version has to tell.

    Raises:
        BrokenPlugin: There is no source to read.
    """
    spec = getattr(module, "__spec__", None)
    kept: tuple[object, str] | None = getattr(module, _KEPT, None)
    if spec is not None and kept is not None and kept[0] is spec:
        return kept[1]
    files = _files_of(module)
    digest = hashlib.sha256()
    if len(files) > _MOST_FILES:
        found = ""
    elif files:
        for name, path in sorted(files.items()):
            digest.update(f"{name}:".encode() + _content(path) + b";")
        found = digest.hexdigest()[:16]
    else:
        digest.update(_own_source(module, target).encode())
        found = digest.hexdigest()[:16]
    setattr(module, _KEPT, (spec, found))
    return found


def _own_source(module: ModuleType, target: Callable[..., Any] | None) -> str:
    try:
        if target is None:
            raise OSError("it has no file")
        return essence_of(textwrap.dedent(inspect.getsource(inspect.unwrap(target))))
    except (OSError, TypeError, SyntaxError) as error:
        raise BrokenPlugin(
            f"the source of {module.__name__!r} cannot be read ({error}), and results are kept by "
            "the code that made them: write it in a file"
        ) from None


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".py":
        try:
            return essence_of(content.decode()).encode()
        except (SyntaxError, ValueError):  # code for another version of Python, say
            return content
    return content


def _files_of(module: ModuleType) -> dict[str, Path]:
    """The files whose code counts, by name."""
    root = _root_of(module)
    place = getattr(root, "__file__", None)
    if place is None:
        return {}
    path = Path(place)
    if path.name == "__init__.py":
        return _files_below(path.parent)
    return dict(_with_neighbors(path))


def _root_of(module: ModuleType) -> ModuleType:
    """The outermost package around a module that has an `__init__`; else the module itself."""
    parts = module.__name__.split(".")
    for length in range(1, len(parts)):
        outer = sys.modules.get(".".join(parts[:length]))
        if outer is not None and getattr(outer, "__file__", None):
            return outer
    return module


def _files_below(folder: Path) -> dict[str, Path]:
    found = (
        (f"{folder.name}/{path.relative_to(folder).as_posix()}", path)
        for path in folder.rglob("*")
        if path.suffix in (".py", *_NATIVE)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return dict(islice(found, _MOST_FILES + 1))


def _with_neighbors(path: Path) -> Iterator[tuple[str, Path]]:
    """A lone module, and the modules and packages of its folder that it needs, theirs included."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in _INSTALLED}
    folder, seen, waiting = path.parent, set(), [path]
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        yield file.relative_to(folder).as_posix(), file
        if file.suffix != ".py" or folder.resolve() in installed:
            continue
        for name in _imported(file):
            waiting.append(folder / f"{name}.py")
            if (folder / name / "__init__.py").is_file():
                waiting += _files_below(folder / name).values()


def _imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
