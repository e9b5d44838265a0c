"""The check that figures in README and docs are those of their records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import claims
import measured_tables
import origins

ROOT = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one record."""
    content = {"rows": [{"name": "a b, K = 24", "share": 0.9386, "bytes": 205200, "n": 1234}]}
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "results" / "r.json").write_text(json.dumps(content))
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    claims.record.cache_clear()
    yield tmp_path
    claims.record.cache_clear()


def test_every_figure_of_this_repository_holds():
    done = subprocess.run(
        [sys.executable, "-W", "error", "benchmarks/claims.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "form", "shown"),
    [
        ("rows/0/share", ".2f", "0.94"),
        ("rows/name=a b, K = 24/share", ".3f", "0.939"),
        ("rows/0/share", "100*.0f", "94"),
        ("rows/0/bytes", "1e-6*.2f", "0.21"),
        ("rows/0/share", "-1*.1f", "-0.9"),
        ("rows/0/n", ",.0f", "1,234"),
    ],
)
@pytest.mark.usefixtures("root")
def test_a_figure_is_that_of_its_record(path, form, shown):
    comment = f"<!-- claim: results/r.json {path} {form} -->"
    right = f"It is {shown}{comment} of them.\n"
    assert claims.renewed(right) == (right, [])
    new, problems = claims.renewed(f"It is 0.5{comment} of them.\n")
    assert new == right
    assert len(problems) == 1
    assert problems[0].startswith(f"0.5 is {shown} in")
    assert list(claims.unmarked(right)) == []


@pytest.mark.parametrize(
    "source",
    [
        "results/none.json rows/0/share .2f",
        "results/r.json rows/0/nothing .2f",
        "results/r.json rows/1/share .2f",
        "results/r.json rows/name=b/share .2f",
        "results/r.json rows/0/share .2",
        "results/r.json rows/0/name .2f",
    ],
)
@pytest.mark.usefixtures("root")
def test_a_source_that_is_none_is_a_problem(source):
    text = f"0.94<!-- claim: {source} -->"
    new, problems = claims.renewed(text)
    assert new == text
    assert len(problems) == 1


def test_published_figures_are_those_of_the_table():
    right = "0.386<!-- published: figure3/29 lnacc .3f -->"
    assert claims.renewed(right) == (right, [])
    assert claims.renewed(right.replace("0.386", "0.387"))[1] == [
        "0.387 is 0.386 in figure3/29 lnacc .3f"
    ]


def test_a_table_is_made_again(monkeypatch):
    monkeypatch.setitem(claims.TABLES, "t", lambda read: ["| a |", "|---|", "| 0.5 |"])
    old = "Before.\n\n<!-- table: t -->\n| 0.4 |\n<!-- end -->\n\nAfter.\n"
    new, problems = claims.renewed(old)
    assert problems == ["table 't' is not that of its record"]
    assert new == old.replace("| 0.4 |", "| a |\n|---|\n| 0.5 |")
    assert claims.renewed(new) == (new, [])
    assert list(claims.unmarked(new)) == []
    assert claims.renewed(old.replace(": t", ": u"))[1] == ["there is no table 'u'"]


@pytest.mark.parametrize(
    "text",
    [
        "Accuracy rises to 0.94.",
        "| a | 0.94 |",
        "0.94 <!-- set -->",
        "0.94<!-- a comment -->",
        "on 1,640.5 of them",
        "Python 3.11 gives 0.94",
    ],
)
def test_a_bare_decimal_is_found(text):
    assert len(list(claims.unmarked(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "above 0.15<!-- set -->",
        "`--threshold 0.5`",
        "```python\nx = 0.5\n```",
        "$p > 0.5$ and $$\n0.85 C\n$$",
        "needs Python 3.11, PyTorch 2.13 or newer",
        "2.7 or later; tested with 2.9",
        "[arXiv:2001.02610](https://arxiv.org/abs/2001.02610)",
        "version 1.2.3",
        "17 of 20",
    ],
)
def test_versions_code_and_formulas_are_no_claims(text):
    assert list(claims.unmarked(text)) == []


def test_an_audits_cost_stands_beside_its_own_clients_epoch():
    def audit(client, name, seconds):
        found = {"found": [["pooled", 1.0, "over"]], "share": seconds / 10, "peak_bytes": 2e6}
        return {"client": client, "name": name, "seconds": seconds, **found}

    content = {
        "training_seconds": {"quick-start": 0.5, "resnet18": 10.0},
        "results": [
            audit("quick-start", "audit-step", 4.0),
            audit("resnet18", "audit-step", 2.0),
            audit("quick-start", "audit-epoch", 3.0),
            audit("resnet18", "audit-epoch", 1.0),
        ],
        "process_peak_bytes": {"without": [3e9, 1e9], "with": [2e9, 4e9]},
    }
    lines = measured_tables.audit_cost(lambda path: content)[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(row[0], float(row[3])) for row in cells] == [
        ("ResNet-18", 10.0), ("ResNet-18", 1.0), ("ResNet-18", 2.0),
        ("quick-start", 0.5), ("quick-start", 3.0), ("quick-start", 4.0),
    ]  # fmt: skip
    (peak,) = measured_tables.audit_peak(lambda path: content)
    assert "1,000 to 3,000 MB without audits and 2,000 to 4,000 MB with them, in 2 runs" in peak


def test_an_interrupted_sweep_says_each_thing_once():
    row = {"scenario": "two", "said": ["busy", "busy", "", "gone"], "starts": 4, "records": 9}
    row |= {"lost": 0, "doubled": 1, "different": 2}
    (line,) = measured_tables.interrupted_sweeps(lambda path: {"rows": [row]})[2:]
    assert line.endswith("| 4 | 9 | 0 | 1 | 2 | busy; gone |")


def test_constants_are_numbers_with_a_name_in_capitals():
    source = "A = 1\n_BOUND = 0.5\n_TWO, _THREE = 2.0, 3\n_NAMES = ('a',)\n_BIG: int = 1 << 17\n"
    assert list(origins.constants(source)) == [
        ("_BOUND", "0.5"), ("_TWO", "2.0"), ("_THREE", "3"), ("_BIG", "1 << 17")
    ]  # fmt: skip
