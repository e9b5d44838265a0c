"""Examples in docstrings come out as they say, with signatures checked.

They are found in the source: where signatures are checked, `doctest` does not see functions.
"""

import ast
import doctest
import importlib
import warnings
from pathlib import Path

import pytest
import torch

import labelleak

SOURCE = Path(labelleak.__file__).parent


def examples():
    """The docstrings with an example: module, name and text."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text, name = ast.get_docstring(node) or "", getattr(node, "name", "module")
                if ">>>" in text:
                    yield pytest.param(
                        module.removesuffix(".__init__"), name, text, id=f"{module}.{name}"
                    )


EXAMPLES = list(examples())


def test_there_are_examples():
    assert len(EXAMPLES) >= 20


@pytest.mark.parametrize(("module", "name", "text"), EXAMPLES)
def test_an_example_comes_out_as_it_says(module, name, text):
    with warnings.catch_warnings(action="ignore"):
        names = dict(vars(importlib.import_module(module)))
    example = doctest.DocTestParser().get_doctest(text, names, name, module, 0)
    said = []
    with torch.random.fork_rng(devices=[]):
        failed = doctest.DocTestRunner().run(example, out=said.append).failed
    assert not failed, "".join(said)
