"""Where constants are from: a table of the docs, from `origins.toml`; used by `claims.py`."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from markdown_tables import table
from measured_tables import Read

HERE = Path(__file__).parent
ATTACKS = HERE.parent / "src" / "labelleak" / "attacks"
_CONSTANT = re.compile(r"_?[A-Z][A-Z_]+")


def constants(source: str) -> Iterator[tuple[str, str]]:
    """Names and values of the numbers that a module gives a name in capitals."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for name, number in pairs:
            text = ast.unparse(number)
            if isinstance(name, ast.Name) and _CONSTANT.fullmatch(name.id) and _is_number(text):
                yield name.id, text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d.e+-]+|\d+ << \d+", text) is not None


def origins(_: Read) -> list[str]:
    """The constants of each module with their values and origins.

    Raises:
        ValueError: A constant has no origin, or an origin no constant.
    """
    lines = []
    for module, known in tomllib.loads((HERE / "origins.toml").read_text()).items():
        found = dict(constants((ATTACKS / f"{module}.py").read_text(encoding="utf-8")))
        if set(found) != set(known):
            raise ValueError(
                f"benchmarks/origins.toml: [{module}] differs from the module in "
                f"{', '.join(sorted(set(found) ^ set(known)))}: write down where each is from"
            )
        lines += [[f"`{module}`", f"`{name}`", found[name], known[name]] for name in found]
    return table(["module", "constant", "value", "chosen on"], lines)
