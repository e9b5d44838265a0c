import json
import re
import sys

import pytest
from click.testing import CliRunner

from labelleak.audit.running import audit_observation
from labelleak.cli import labelleak
from labelleak.cli.running import write_results
from labelleak.errors import UnreadableFile
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.storage import write_json
from synthetic import told


def _report(*words):
    return CliRunner().invoke(labelleak, ["report", *map(str, words)])


@pytest.fixture
def record(tmp_path):
    import torch

    torch.manual_seed(0)
    classes, features, size = 4, 6, 3
    weight, inputs = torch.randn(classes, features), torch.randn(size, features).abs()
    chances = torch.softmax(inputs @ weight.T, dim=1)
    chances[range(size), [0, 2, 2]] -= 1
    observation = Observation(
        head=Head(weight=weight, bias=torch.zeros(classes)),
        gradient=HeadGradient(weight=chances.T @ inputs / size, bias=chances.mean(dim=0)),
        **told(batch_size=size),
    )
    path = tmp_path / "record.json"
    content = audit_observation(observation, true_counts=torch.tensor([1, 0, 2, 0])).as_dict()
    write_json(path, content)
    return path, content


@pytest.fixture
def run(tmp_path):
    study = {
        "schema": "labelleak/study/1",
        "name": "mine",
        "title": "Mine: a grid",
        "source": "",
        "scale": None,
        "interval": "95 %",
        "metrics": [],
        "panels": [],
        "rows": [],
        "omitted": [],
        "environment": {"cores": 2},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    write_results(folder, "My run", [study])
    return folder


def test_a_record_becomes_a_page_beside_it(record):
    path, content = record
    done = _report(path)
    assert done.exit_code == 0
    page = path.with_suffix(".html")
    assert done.output == f"Page: {page}\n"
    text = page.read_text(encoding="utf-8")
    for true, restored in zip(content["true_counts"], content["counts"], strict=True):
        assert re.search(rf"<td>{true}</td>\s*<td>{restored}</td>", text)


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_run_is_rendered_as_it_was(run, by):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert set(before) == {"summary.json", "mine.csv", "report.html"}
    (run / "report.html").unlink()
    (run / "mine.csv").unlink()
    done = _report(run if by == "folder" else run / "summary.json")
    assert done.exit_code == 0
    assert done.output == f"Page: {run / 'report.html'}\n"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no summary"),
        ({"schema": "labelleak/run/2"}, "is no summary"),
        ({"studies": 3}, "has studies of another schema"),
        ({"studies": [{"schema": "other"}]}, "has studies of another schema"),
        ({"studies": [{"schema": "labelleak/study/1"}]}, "has a name that no file can have"),
        ({"name": "../mine"}, "has a name that no file can have"),
        ({"name": "/tmp/mine"}, "has a name that no file can have"),
        ({"rows": 3}, "does not hold what its schema says"),
        ({"rows": [{}]}, "does not hold what its schema says"),
        ({"interval": {"of": 3}}, "does not hold what its schema says"),
    ],
)
def test_what_is_no_run_is_one_line_and_writes_nothing(run, content, message):
    path = run / "summary.json"
    text = content
    if isinstance(content, dict):
        whole = json.loads(path.read_text())
        if not content.keys() & {"schema", "studies"}:
            content = {"studies": [whole["studies"][0] | content]}
        text = json.dumps(whole | content)
    for other in ("report.html", "mine.csv"):
        (run / other).unlink()
    path.write_text(text)
    done = _report(run)
    assert isinstance(done.exception, UnreadableFile)
    assert message in str(done.exception)
    assert str(path) in str(done.exception)
    assert "\n" not in str(done.exception)
    assert [file.name for file in run.iterdir()] == ["summary.json"]


def test_what_is_no_record_is_one_line(record):
    path, content = record
    for changed in ({"schema": "other"}, {"counts": "many"}):
        path.write_text(json.dumps(content | changed))
        assert isinstance(_report(path).exception, UnreadableFile)
        assert not path.with_suffix(".html").exists()


def test_a_record_is_never_overwritten_by_its_page(record):
    path, _ = record
    page = path.rename(path.with_suffix(".html"))
    before = page.read_bytes()
    assert "would be overwritten" in str(_report(page).exception)
    assert page.read_bytes() == before


def test_a_page_that_cannot_be_written_is_named(record):
    path, _ = record
    path.with_suffix(".html").mkdir()
    assert str(_report(path).exception).endswith("record.html: cannot be written: it is a folder")


def test_the_studies_are_of_the_schema_that_summaries_have():
    from labelleak.lab.summary import SUMMARY_SCHEMA

    assert sys.modules["labelleak.cli.report"]._STUDY_SCHEMA == SUMMARY_SCHEMA


def test_what_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.json"):
        done = _report(path)
        assert isinstance(done.exception, UnreadableFile)
        assert str(done.exception).startswith(f"{path}: No such file")
