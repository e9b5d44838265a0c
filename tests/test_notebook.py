"""The example notebook runs from top to bottom, and shows what it was saved with."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def shown(source, names):
    """Run a cell; the value of its last expression, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def headings(page):
    """What does not depend on the processor: titles and names, without figures."""
    return re.findall(r"<b>(.*?)</b>|<th>([a-z]+)</th>|opacity:\.7\">(.*?)</td>", page)


def test_every_cell_runs_and_shows_what_it_did():
    pytest.importorskip("pandas")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names, titles = {}, []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        value = shown("".join(cell["source"]), names)
        for output in cell["outputs"]:
            saved = headings("".join(output["data"]["text/html"]))
            assert headings(value._repr_html_()) == saved != []
            titles.append(type(value).__name__)
    assert titles == ["Observation", "Restoration", "DataFrame", "Score", "Restoration", "Score"]
    assert names["found"].counts.equal(names["true_counts"])
    assert names["blurred"].flags
