import json
import subprocess
import sys

import pytest

from command_line import labelleak
from find_published import find
from labelleak.cli import reproduce as module
from labelleak.cli.experiments import Outcome
from labelleak.lab import paper
from labelleak.lab.studies import NAMES
from labelleak.report import run as results


def reproduce(*arguments):
    return labelleak("reproduce", *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Table 1 at the smallest scale, in this process."""
    folder = tmp_path_factory.mktemp("runs") / "table1"
    done = reproduce("table1", "--scale", "smoke", "--workers", 1, "--out", folder)
    return done, folder


def test_every_row_is_run_on_the_embedded_digits(run):
    done, folder = run
    assert done.status == 0, done.err
    summary = json.loads((folder / "summary.json").read_text())
    (study,) = summary["studies"]
    assert [row["label"] for row in study["rows"]] == [
        row.label for row in paper.study("table1", "smoke").rows
    ]
    for row in study["rows"]:
        assert (row["data"], row["trials"], row["trials_planned"]) == ("mnist-sample", 3, 3)
        for name in ("ilrg.leacc", "idlg.leacc", "gradinversion.leacc", "probability_cossim"):
            assert row["metrics"][name]["trials"] == 3
    fcn = study["rows"][0]["metrics"]
    published = find("table1", model="fcn-3")[0].figures
    assert fcn["ilrg.lnacc"]["published"] == published["lnacc"]
    assert fcn["ilrg.lnacc"]["ours"] == pytest.approx(published["lnacc"], abs=0.1)
    assert fcn["gradinversion.leacc"]["published"] == published["gi_leacc"]
    assert len((folder / "records.jsonl").read_text().splitlines()) == 3 * len(study["rows"])


def test_ours_is_printed_beside_the_published(run):
    done, folder = run
    text = done.text
    assert "Table 1: restored labels on untrained networks" in text
    assert "0.994" in text
    assert "Left out, shrunk or replaced" in text
    assert "3 trials instead of 50 (all rows)" in text
    assert f"Page: {folder / 'report.html'}" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "FCN-3 on MNIST, untrained, K = 24" in page
    assert "FCN-3 on MNIST" in (folder / "table1.csv").read_text(encoding="utf-8")


def test_nothing_that_is_there_is_run_again(run, monkeypatch):
    _, folder = run
    before = (folder / "records.jsonl").read_bytes()
    monkeypatch.setattr("labelleak.lab.runner.run_trial", None)  # cannot be called
    arguments = ("--scale", "smoke", "--workers", 1, "--out", folder, "--format", "json")
    done = reproduce("table1", *arguments)
    assert done.status == 0
    assert (folder / "records.jsonl").read_bytes() == before
    assert json.loads(done.out) == json.loads((folder / "summary.json").read_text())


def test_all_runs_every_study_and_its_page_grows_with_them(tmp_path, monkeypatch):
    folders, pages = [], []

    def run_experiments(experiments, folder, place):
        folders.append(folder)
        assert place.workers == 2
        failed = {"Some experiment": "its data is broken"} if len(folders) == 3 else {}
        return Outcome([], failed, frozenset())

    def write_run(folder, title, summaries):
        pages.append([summary["name"] for summary in summaries])
        return folder / "report.html"

    monkeypatch.setattr(module, "run_experiments", run_experiments)
    monkeypatch.setattr(results, "write_run", write_run)
    arguments = ("--scale", "smoke", "--workers", 2, "--out", tmp_path, "--format", "json")
    done = reproduce("all", *arguments)
    assert done.status == 2  # something could not be run
    assert folders == [tmp_path] * len(NAMES)
    assert pages == [list(NAMES[:number]) for number in range(1, len(NAMES) + 1)]
    assert [study["name"] for study in json.loads(done.out)["studies"]] == list(NAMES)


def test_figure4_shows_its_pictures(tmp_path, monkeypatch):
    """Two rows of FCN-3 and one of ResNet-18: `make smoke` runs the others."""
    whole = paper.study("figure4", "smoke")
    some = whole.model_copy(update={"rows": (whole.rows[0], *whole.rows[4:6])})
    monkeypatch.setattr(paper, "study", lambda *_, **__: some)
    done = reproduce("figure4", "--scale", "smoke", "--workers", 1, "--out", tmp_path)
    assert done.status == 0, done.err
    (study,) = json.loads((tmp_path / "summary.json").read_text())["studies"]
    rows = {(row["network"], row["label"].partition(" labels ")[2]): row for row in study["rows"]}
    assert len(rows) == len(study["rows"]) == 3
    for row in rows.values():
        assert row["trials"] == 1
        pictures = row["pictures"]
        scores = sorted(pictures["psnr"], reverse=True)
        assert row["metrics"]["psnr"]["ours"] == pytest.approx(sum(scores) / len(scores))
        assert row["metrics"]["psnr_best6"]["ours"] == pytest.approx(sum(scores[:6]) / 6)
        for name in pictures["files"].values():
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    shared = "free, one soft label for the batch (the published baseline)"
    published = rows["fcn-3", shared]["metrics"]["psnr_best6"]["published"]
    assert published == find("figure4_shared", dataset="mnist")[0].figures["psnr_best6"] == 12.46
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 * len(rows)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(rows)
    assert labelleak("report", tmp_path).status == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_a_missing_extra_is_named_in_one_line():
    program = (
        "import sys; sys.modules['pydantic'] = None; sys.argv = ['labelleak', 'reproduce', "
        "'table1', '--scale', 'smoke']; from labelleak.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "this command needs pydantic: pip install 'labelleak[" in done.stderr
