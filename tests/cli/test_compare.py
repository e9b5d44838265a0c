import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from command_line import labelleak
from labelleak.lab.experiment_grid import read_grid
from labelleak.lab.store import read_records

GRID = """
[defaults]
data = "mnist-sample"
network = { name = "fcn-3" }
attacks = ["ilrg", "rlg"]
trials = 4
[[experiment]]
name = "plain"
[[experiment]]
name = "noise"
defense = { name = "gaussian_noise", value = 0.1 }
[grid]
batch.size = [8, 24]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GRID)
    return path


def compare(*arguments):
    return labelleak("compare", *arguments)


def test_a_grid_is_run_and_shown(grid, tmp_path):
    out = tmp_path / "out"
    done = compare(grid, "--out", out, "--workers", 1)
    assert done.status == 0, done.err
    text = " ".join(done.out.split())
    assert "Comparison: mine" in text
    assert "rlg could not run in 4 of 4 trials of 'noise, batch.size=8': RLG needs" in text
    assert str(out / "report.html") in done.out.replace("\n", "")
    records = read_records(out)
    keys = {e.trial_key(i) for e in read_grid(grid) for i in range(4)}
    assert {record["key"] for record in records} == keys
    assert len(records) == len(keys) == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "noise, batch.size=24" in page
    assert "range evaluation" in page
    assert "earlier run" not in page
    assert read_grid(out / "grid.toml") == read_grid(grid)
    with (out / "mine.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "ilrg.leacc"]
    assert len(rows) == 4


def test_what_other_code_has_run_is_run_again_and_kept(grid, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("labelleak.lab.definition.code_hash", lambda images: "older")
    assert compare(grid, "--out", out, "--workers", 1).status == 0
    before = read_records(out)
    monkeypatch.undo()
    assert compare(grid, "--out", out, "--workers", 1).status == 0
    after = read_records(out)
    assert after[: len(before)] == before
    definitions = [record["definition"] for record in before]
    assert sorted(record["definition"] for record in after[len(before) :]) == sorted(definitions)


def test_json_is_the_summary_and_nothing_else(grid, tmp_path):
    out = tmp_path / "out"
    done = compare(grid, "--out", out, "--workers", 1, "--format", "json")
    summary = json.loads(done.out)
    assert json.loads((out / "summary.json").read_text())["studies"] == [summary]
    plain = summary["rows"][0]
    values = [
        record["attacks"]["ilrg"]["rounded"]["lnacc"]
        for record in read_records(out)
        if record["experiment"] == plain["label"]
    ]
    assert plain["metrics"]["ilrg.lnacc"]["ours"] == pytest.approx(sum(values) / 4)


def test_auto_baselines_and_a_time_limit(grid, tmp_path):
    text = GRID.replace('["ilrg", "rlg"]', '["auto"]').replace("trials = 4", "trials = 1")
    grid.write_text(
        text.replace("trials", 'baselines = ["uniform"]\nmeasures = ["seconds"]\ntrials')
    )
    out = tmp_path / "out"
    done = compare(grid, "--out", out, "--workers", 1, "--time-limit", 5)
    assert done.status == 0, done.err
    assert "proven" in done.out
    assert "uniform" in done.out
    limited = {e.model_copy(update={"time_limit": 5.0}).trial_key(0) for e in read_grid(grid)}
    assert {record["key"] for record in read_records(out)} == limited


def test_a_time_limit_is_positive(grid):
    done = compare(grid, "--time-limit", 0)
    assert done.status == 2
    assert "--time-limit" in done.err


def test_the_folder_is_named_by_the_grid(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare(grid, "--workers", 1).status == 0
    assert len(read_records(tmp_path / "labelleak-runs" / "mine")) == 16


def test_an_experiment_that_fails_is_named_and_the_others_shown(grid, tmp_path):
    grid.write_text(GRID.replace("24]", "6000]"))
    done = compare(grid, "--out", tmp_path / "out", "--workers", 1)
    assert done.status == 2
    assert "experiment 'plain, batch.size=6000' could not be run: the data set has" in done.err
    assert "plain" in done.out
    assert len(read_records(tmp_path / "out")) == 8


def test_nothing_run_prints_no_table(grid, tmp_path):
    grid.write_text(GRID.replace("[8, 24]", "[6000]"))
    done = compare(grid, "--out", tmp_path / "out", "--workers", 1)
    assert done.status == 2
    assert done.text == f"Page: {tmp_path / 'out' / 'report.html'}"


def test_progress_is_told_where_there_is_no_terminal(grid, tmp_path):
    done = compare(grid, "--out", tmp_path / "out", "--workers", 1)
    lines = done.err.splitlines()
    assert (lines[0], lines[-1]) == ("trials: 0 of 16", "trials: 16 of 16")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_one_core_is_enough(grid, tmp_path):
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from labelleak.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program, "compare", str(grid), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_records(tmp_path / "out")) == 16


def test_errors_are_lines_of_the_file(grid):
    grid.write_text(GRID.replace("rlg", "rgl").replace("trials = 4", "trials = 0"))
    done = compare(grid)
    assert done.status == 2
    lines = done.err.removeprefix("labelleak: ").splitlines()
    assert len(lines) == 4  # two experiments with two problems each
    assert (
        f"{grid}: experiment 'plain': attacks.1: no attack named 'rgl': choose auto, " in lines[0]
    )
    assert "trials: input should be greater than or equal to 1, not 0" in lines[1]


def test_a_cluster_has_workers_of_its_own(grid, tmp_path):
    done = compare(grid, "--out", tmp_path / "out", "--workers", 2, "--dask", "tcp://127.0.0.1:9")
    assert done.status == 2
    assert "give one of them" in done.err
    assert not (tmp_path / "out").exists()


def test_help_shows_a_grid():
    assert "batch.size = [8, 24, 64]" in compare("--help").out


MANY = """
[defaults]
name = "many"
data = "mnist-sample"
network = { name = "fcn-3" }
attacks = ["ilrg"]
batch = { size = 24 }
trials = 3000
"""


def start(grid, out, *, lines):
    """Start the command with two workers, and give it once it has made so many records."""
    # Where the tests run in the background, interruptions are ignored, and that is inherited.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from labelleak.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program, "compare", str(grid), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    path, until = out / "records.jsonl", time.monotonic() + 1000
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
class TestInterrupted:
    def test_killed_at_any_moment_nothing_is_repeated_lost_or_doubled(self, grid, tmp_path):
        grid.write_text(MANY)
        out = tmp_path / "out"
        path = out / "records.jsonl"
        process = start(grid, out, lines=20)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Its workers end by themselves, and let go of what they share with it.
        process.communicate(timeout=300)
        before = path.read_bytes()
        whole = before[: before.rfind(b"\n") + 1]
        assert 20 <= whole.count(b"\n") < 3000

        # So many trials that thirty or so are left, whichever the first run had made.
        trials = whole.count(b"\n") + 30
        grid.write_text(MANY.replace("3000", str(trials)))
        done = compare(grid, "--out", out, "--workers", 1, "--format", "json")
        assert done.status == 0, done.err
        after = path.read_bytes()
        assert after.startswith(whole)
        (experiment,) = read_grid(grid)
        keys = [json.loads(line)["key"] for line in after.splitlines()]
        assert len(set(keys)) == len(keys)
        wanted = {experiment.trial_key(index) for index in range(trials)}
        assert wanted <= set(keys)
        assert set(keys[whole.count(b"\n") :]) == wanted - set(keys[: whole.count(b"\n")])
        assert json.loads(done.out)["rows"][0]["trials"] == trials

    def test_ctrl_c_says_how_to_go_on(self, grid, tmp_path):
        grid.write_text(MANY)
        out = tmp_path / "out"
        process = start(grid, out, lines=20)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers and all
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130
        kept = len(read_records(out))
        assert 20 <= kept < 3000
        lines = [line for line in errors.splitlines() if line.strip()]
        path = out / "records.jsonl"
        assert lines[0] == "trials: 0 of 3000"
        assert [line for line in lines if not line.startswith("trials: ")] == [
            f"labelleak: interrupted: {kept} trials are kept in {path}; the same command continues "
            "from there"
        ]


def test_only_what_runs_experiments_needs_the_extra(grid):
    """Without pydantic and joblib the demo works, and this command says what it needs."""
    program = (
        "import sys\n"
        "sys.modules['pydantic'] = sys.modules['joblib'] = None\n"
        "from labelleak.cli.entry import run\n"
        "assert run(['demo', '--out', 'demo']) == 0\n"
        "sys.exit(run(['compare', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(grid)],
        cwd=grid.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (grid.parent / "demo").is_dir(), done.stderr
    assert done.returncode == 2
    assert done.stderr == (
        "labelleak: this command needs pydantic: pip install 'labelleak[cli,experiments,report]'\n"
    )
