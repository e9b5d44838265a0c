"""The entry points of other packages by kind, and a plug-in with where it comes from."""

import hashlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, cast

from labelleak.errors import BrokenPlugin
from labelleak.plugins.loading import import_plugin, load_object
from labelleak.plugins.source_code import source_hash

KINDS = MappingProxyType(
    {
        "attacks": "attack",
        "defenses": "defense",
        "networks": "network",
        "datasets": "data set",
        "losses": "loss",
    }
)
"""What other packages can add: entry points of the group ``labelleak.`` and one of these words."""


@dataclass(frozen=True)
class EntryPoint:
    """One entry point of another package.

    Attributes:
        kind: One of `KINDS`.
        name: Its name, by which the plug-in is asked for.
        value: The object that it names, ``module:name``, or a module.
        package: Name and version of the package.
    """

    kind: str
    name: str
    value: str
    package: str

    @property
    def module(self) -> str:
        """Name of its module."""
        return self.value.partition(":")[0]

    def load(self) -> object:
        """Import what it names, which runs code of the package.

        Raises:
            BrokenPlugin: It cannot be imported.
        """
        what = f"{KINDS[self.kind]} {self.name!r} of the package {self.package}"
        if ":" in self.value:
            return load_object(self.value, what)
        return import_plugin(self.value, what)


@cache
def entry_points(kind: str) -> MappingProxyType[str, EntryPoint]:
    """The entry points of all installed packages by name; none of them is loaded.

    Args:
        kind: One of `KINDS`.

    Returns:
        The first of each name, by the names of the packages.
    """
    every = []
    for one in importlib.metadata.entry_points(group=f"labelleak.{kind}"):
        package = (
            "an unknown package" if one.dist is None else f"{one.dist.name} {one.dist.version}"
        )
        every.append(EntryPoint(kind, one.name, one.value.replace(" ", ""), package))
    found: dict[str, EntryPoint] = {}
    for entry in sorted(every, key=lambda entry: entry.package):
        found.setdefault(entry.name, entry)
    return MappingProxyType(found)


@dataclass(frozen=True)
class Plugin:
    """Something that is not labelleak's own, loaded.

    Attributes:
        name: The name that it was asked for by.
        package: Name and version of its package; the name of the module where no package says.
        module: Name of the module that it was imported from.
        target: The object itself.
        by_version: Whether the version alone tells what code it is, as of a published library.
    """

    name: str
    package: str
    module: str
    target: object = field(repr=False, compare=False)
    by_version: bool = False

    @property
    def code(self) -> str:
        """A hash of the version and the source, 16 hexadecimal digits."""
        target = cast("Callable[..., Any]", self.target)
        source = "" if self.by_version else source_hash(sys.modules[self.module], target)
        return hashlib.sha256(f"{self.package}:{source}".encode()).hexdigest()[:16]


def find_plugin(kind: str, name: str) -> Plugin:
    """Load a defense, a network, a data set or a loss by the name that a grid has for it.

    Args:
        kind: One of `KINDS`.
        name: Name of an entry point, or ``module:name``.

    Returns:
        The plug-in.

    Raises:
        BrokenPlugin: It is none of these, or cannot be imported.

    Examples:
        >>> find_plugin("networks", "torch.nn:Linear").target.__name__
        'Linear'
    """
    if ":" in name:
        module = name.partition(":")[0]
        return Plugin(name, package_of(module), module, load_object(name, KINDS[kind]))
    entry = entry_points(kind).get(name)
    if entry is None:
        raise BrokenPlugin(
            f"no {KINDS[kind]} {name!r}: no installed package has an entry point of that name in "
            f"the group 'labelleak.{kind}'"
        )
    return Plugin(name, entry.package, entry.module, entry.load())


def package_of(module: str) -> str:
    """Name and version of the package that a module belongs to.

    Args:
        module: Dotted name of the module.

    Returns:
        Such as ``my-attack 0.1.0``, by the entry points of packages, or where the package has the
        name of the module; else the module's own top-level name.
    """
    top = module.partition(".")[0]
    for kind in KINDS:
        for entry in entry_points(kind).values():
            if entry.module.partition(".")[0] == top:
                return entry.package
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return top


def plugin_names(kind: str) -> tuple[str, ...]:
    """Names of the entry points of a kind, sorted."""
    return tuple(sorted(entry_points(kind)))
