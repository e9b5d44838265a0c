import json
import re
import stat

import pytest
import torch

from command_line import labelleak
from labelleak.audit.running import audit_observation
from labelleak.federated import Policy, RoundRecord, append_record
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.report.run import write_run
from labelleak.storage import write_json
from synthetic import told


@pytest.fixture
def record(tmp_path):
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
        "interval": "95%",
        "metrics": [],
        "panels": [],
        "rows": [],
        "omitted": [],
        "environment": {"cores": 2},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, "My run", [study])
    return folder


@pytest.fixture
def rounds(tmp_path):
    folder = tmp_path / "records"
    for client in "ab":
        record = RoundRecord(
            1, client, "", "flower", "warned", "failed", "no labels", Policy().as_dict()
        )
        append_record(folder, record)
    return folder


def assert_refused(done, words):
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("labelleak: ")
    assert done.err.count("\n") == 1
    assert words in done.err


# One audit


def test_a_record_becomes_a_page_beside_it(record):
    path, content = record
    page = path.with_suffix(".html")
    assert labelleak("report", path) == (0, f"Page: {page}\n", "")
    text = page.read_text(encoding="utf-8")
    for true, restored in zip(content["true_counts"], content["counts"], strict=True):
        assert re.search(rf"<td>{true}</td>\s*<td>{restored}</td>", text)


def test_what_is_no_record_is_one_line(record):
    path, content = record
    for changed in ({"schema": "other"}, {"counts": "many"}):
        path.write_text(json.dumps(content | changed))
        assert_refused(labelleak("report", path), str(path))
        assert not path.with_suffix(".html").exists()


def test_a_record_is_never_overwritten_by_its_page(record):
    path, _ = record
    page = path.rename(path.with_suffix(".html"))
    before = page.read_bytes()
    assert_refused(labelleak("report", page), "would be overwritten")
    assert page.read_bytes() == before


def test_a_page_that_cannot_be_written_is_named(record):
    path, _ = record
    path.with_suffix(".html").mkdir()
    assert_refused(labelleak("report", path), "record.html: cannot be written: it is a folder")


# A run


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_run_is_rendered_as_it_was(run, by):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert set(before) == {"summary.json", "mine.csv", "report.html"}
    (run / "report.html").unlink()
    (run / "mine.csv").unlink()
    done = labelleak("report", run if by == "folder" else run / "summary.json")
    assert done == (0, f"Page: {run / 'report.html'}\n", "")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("content", [{"rows": 3}, {"rows": [{}]}, {"interval": {"of": 3}}])
def test_a_run_that_lacks_something_is_one_line_and_writes_nothing(run, content):
    path = run / "summary.json"
    whole = json.loads(path.read_text())
    for other in ("report.html", "mine.csv"):
        (run / other).unlink()
    path.write_text(json.dumps(whole | {"studies": [whole["studies"][0] | content]}))
    assert_refused(labelleak("report", run), f"{path}: does not hold what its schema says")
    assert [file.name for file in run.iterdir()] == ["summary.json"]


def test_the_page_of_a_run_stays_in_its_folder(run, tmp_path):
    done = labelleak("report", run, "--out", tmp_path / "page.html")
    assert_refused(done, "stay in its folder")


# The rounds of a federation


def test_a_folder_of_records_becomes_a_page(rounds):
    assert labelleak("report", rounds) == (0, f"Page: {rounds / 'report.html'}\n", "")
    page = rounds / "report.html"
    assert "2 audits of 2 clients in 1 round" in page.read_text()
    # It may hold true counts.
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_the_page_goes_where_it_is_told(rounds, tmp_path):
    out = tmp_path / "page.html"
    done = labelleak("report", rounds / "client-a.jsonl", "--out", out)
    assert done.out == f"Page: {out}\n"
    assert "1 audit of 1 client" in out.read_text()
    assert not (rounds / "report.html").exists()


def test_records_are_not_overwritten(rounds):
    path = rounds / "client-a.jsonl"
    content = path.read_bytes()
    for source in (rounds, path):
        assert_refused(labelleak("report", source, "--out", path), "would be overwritten")
    assert path.read_bytes() == content


def test_a_broken_line_is_told_and_left_out(rounds):
    path = rounds / "client-b.jsonl"
    path.write_bytes(path.read_bytes() + b'{"schema": "labelleak/rou')
    done = labelleak("report", rounds)
    assert done.status == 0
    assert "client-b.jsonl, line 2: is no record, left out" in done.err


def test_records_that_lack_something(rounds):
    (rounds / "client-c.jsonl").write_text('{"schema": "labelleak/round/1", "round": 1}\n')
    done = labelleak("report", rounds)
    assert done.status == 0
    assert "client-c.jsonl, line 1: is no record, left out" in done.err


def test_a_folder_without_records(tmp_path):
    assert_refused(labelleak("report", tmp_path), "holds no records of rounds")


@pytest.mark.parametrize("name", ["none", "none.json"])
def test_what_is_not_there_is_named(tmp_path, name):
    assert_refused(labelleak("report", tmp_path / name), f"{tmp_path / name}: no such file")


def test_an_officers_page_stands_beside_the_record(record):
    path, _ = record
    page = path.with_name("record-officer.html")
    assert labelleak("report", path, "--officer") == (0, f"Page: {page}\n", "")
    assert "data-protection officer" in page.read_text(encoding="utf-8")
    assert_refused(labelleak("report", path.parent, "--officer"), "the record of one audit")


def test_an_advice_becomes_a_page(record):
    path, content = record
    advice = {
        "schema": "labelleak/advice/1", "audit": content, "summary": "no change is needed",
        "changes": [], "untried": [],
    }  # fmt: skip
    path.write_text(json.dumps(advice))
    assert labelleak("report", path).status == 0
    text = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "What a change would cost and buy" in text
    path.write_text(json.dumps(advice | {"changes": "many"}))
    assert_refused(labelleak("report", path), str(path))
    path.write_text(json.dumps(advice | {"audit": {}}))
    assert_refused(labelleak("report", path), "no audit record")
