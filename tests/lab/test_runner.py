import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from labelleak.errors import LabelLeakError
from labelleak.lab import runner
from labelleak.lab.definition import Batch, Experiment, Network, Training
from labelleak.lab.runner import run
from labelleak.lab.store import Store, read_records
from labelleak.lab.trial import run_trial
from own_plugins import written


def experiment(name="a", **fields):
    given = {
        "data": "mnist-sample",
        "network": Network(name="fcn-3"),
        "batch": Batch(size=24),
        "attacks": ("ilrg", "rlg"),
        "trials": 3,
    }
    return Experiment(name=name, **(given | fields))


STAGES = [
    experiment(
        f"stage {steps}",
        training=Training(unit="iterations", steps=steps, total=6, samples_per_class=20),
        measures=("approximations",),
    )
    for steps in (0, 3, 6)
]
SEVERAL = [experiment(), experiment("lenet", network=Network(name="lenet5")), *STAGES]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def records(experiments, folder, **options):
    """Run, and give the records in an order that does not depend on who was first."""
    with Store(folder) as store:
        summary = run(experiments, store, **options)
        found = sorted(store.records(), key=lambda record: record["key"])
    return summary, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The records of SEVERAL from this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELLEAK_CACHE", str(tmp_path_factory.mktemp("cache")))
        summary, found = records(SEVERAL, tmp_path_factory.mktemp("run"), workers=1)
    assert summary.failed == {}
    return found


def test_every_trial_is_run_once(alone):
    expected = {e.trial_key(index) for e in SEVERAL for index in range(3)}
    assert {record["key"] for record in alone} == expected
    assert len(alone) == len(expected) == 15


def test_processes_give_the_same_records_bit_for_bit(alone, folder):
    summary, found = records(SEVERAL, folder, workers=2)
    assert (summary.trials, summary.found, summary.made, summary.failed) == (15, 0, 15, {})
    assert json.dumps(found) == json.dumps(alone)


def address_in(path):
    """The address in a scheduler's file; None while the scheduler has not written all of it."""
    try:
        return json.loads(path.read_text())["address"]
    except (OSError, ValueError):
        return None


@contextmanager
def dask(folder, workers, **environment):
    """A Dask scheduler and its workers in processes of their own: address, cache, scheduler."""
    log = (folder / "log").open("w")
    cache = str(folder / "cache")
    started = []

    def start(program, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *arguments]
        started.append(
            subprocess.Popen(
                [*command, "--no-dashboard", "--scheduler-file", "scheduler"],
                cwd=folder,
                env=os.environ | {"LABELLEAK_CACHE": cache} | environment,
                stdout=log,
                stderr=log,
            )
        )

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(workers):
            start("worker", "--no-nanny", "--nthreads", "1")
        until = time.monotonic() + 60
        while (address := address_in(folder / "scheduler")) is None:
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        yield address, cache, started[0]
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Dask scheduler with two worker processes on this machine: its address, and its cache."""
    with dask(tmp_path_factory.mktemp("dask"), workers=2) as (address, cache, _):
        yield address, cache


def test_dask_gives_the_same_records_bit_for_bit(alone, folder, cluster, monkeypatch):
    from distributed import Client

    address, cache = cluster
    monkeypatch.setenv("LABELLEAK_CACHE", cache)
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        several = [*SEVERAL, experiment("bad", batch=Batch(size=6000))]
        summary, found = records(several, folder, dask=address)
        took_part = client.run(lambda: "labelleak.lab.trial" in sys.modules)
    assert (summary.made, list(summary.failed)) == (15, ["bad"])
    assert json.dumps(found) == json.dumps(alone)
    assert list(took_part.values()) == [True, True]


def test_a_module_of_the_user_is_found_by_the_workers_of_a_cluster(folder, cluster, tmp_path):
    with written(tmp_path) as own:
        one = experiment(attacks=(f"{own}:attack",))
        summary, found = records([one], folder, dask=cluster[0])
    assert (summary.made, summary.failed) == (3, {})
    assert {record["code"] for record in found} == {found[0]["code"]}
    assert found[0]["plugins"] == {f"{own}:attack": own}


def test_no_scheduler(folder):
    with pytest.raises(LabelLeakError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        records([experiment()], folder, dask="tcp://127.0.0.1:9", connect_seconds=0.5)
    with pytest.raises(LabelLeakError, match="no Dask scheduler answers at nowhere"):
        records([experiment()], folder, dask="nowhere://x", connect_seconds=0.5)


def test_a_scheduler_that_is_killed_is_one_line(folder, tmp_path, capfd):
    with dask(tmp_path, workers=1) as (address, _, scheduler):

        def kill(what, done, total):
            if done == 2:
                scheduler.kill()

        with pytest.raises(LabelLeakError, match=r"the Dask scheduler at .* is gone: the records"):
            records(
                [experiment(trials=2000)], folder, dask=address, progress=kill, connect_seconds=2
            )
    assert len(read_records(folder)) >= 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_cluster_without_labelleak_is_one_line(folder, tmp_path):
    (tmp_path / "labelleak.py").write_text("raise ImportError('another labelleak')")
    with (
        dask(tmp_path, workers=1, PYTHONPATH=str(tmp_path)) as (address, _, _),
        pytest.raises(LabelLeakError, match="cannot read the trials: its scheduler and"),
    ):
        records([experiment()], folder, dask=address, connect_seconds=60)
    assert read_records(folder) == []


def test_a_worker_whose_run_is_gone_says_so():
    program = "import time; from labelleak.lab import runner; runner._end_with(1); time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "labelleak: a worker ends: the run that it belongs to is gone\n"


def test_without_a_gpu_nothing_is_tried(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(runner, "run_trial", None)  # cannot be called
    with pytest.raises(LabelLeakError, match="no CUDA GPU here"):
        records([experiment()], folder, workers=1, device="cuda")


@pytest.mark.parametrize(
    ("module", "options"),
    [("joblib", {"workers": 2}), ("distributed", {"dask": "tcp://127.0.0.1:9"})],
)
def test_an_extra_that_is_missing_is_named(folder, monkeypatch, module, options):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LabelLeakError, match="pip install 'labelleak"):
        records([experiment()], folder, **options)


def test_what_is_there_is_not_run_again(folder, monkeypatch):
    _, first = records([experiment()], folder, workers=1)
    ran = []

    def look(experiment, index, data_dir, *, device):
        ran.append((experiment.name, index))
        return run_trial(experiment, index, data_dir, device=device)

    monkeypatch.setattr(runner, "run_trial", look)
    summary, found = records([experiment("renamed", trials=5)], folder, workers=1)
    assert (summary.trials, summary.found, summary.made) == (5, 3, 2)
    assert ran == [("renamed", 3), ("renamed", 4)]
    assert [record for record in found if record["trial"] < 3] == first


def test_experiments_that_differ_by_name_only_are_run_once(folder):
    summary, found = records([experiment("a"), experiment("b", trials=4)], folder, workers=1)
    assert (summary.trials, summary.made, len(found)) == (4, 4, 4)


def test_one_that_cannot_be_run_keeps_no_other_from_it(folder, tmp_path):
    diverging = Training(unit="iterations", steps=3, total=3, learning_rate=1e20)
    bad = [
        experiment("too large", batch=Batch(size=6000)),
        experiment("no data", data="mnist"),
        experiment("no network", network=Network(name="vgg11")),
        experiment("diverges", training=diverging),
    ]
    summary, found = records([*bad, experiment()], folder, workers=1, data_dir=tmp_path)
    assert (summary.trials, summary.made, len(found)) == (15, 3, 3)
    reasons = {
        "too large": "batch of 6000",
        "no data": "was not found",
        "no network": "at least 32x32",
        "diverges": "diverged",
    }
    assert set(summary.failed) == set(reasons)
    for name, reason in reasons.items():
        assert reason in summary.failed[name]


def test_an_interruption_keeps_what_was_made(folder, monkeypatch):
    """As by Ctrl-C in the middle of the third trial."""
    ran = []

    def interrupted(experiment, index, data_dir, *, device):
        ran.append(index)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run_trial(experiment, index, data_dir, device=device)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            records([experiment(trials=5)], folder, workers=1)
    summary, found = records([experiment(trials=5)], folder, workers=1)
    assert (summary.found, summary.made) == (2, 3)
    assert sorted(record["trial"] for record in found) == [0, 1, 2, 3, 4]


def test_a_worker_that_dies_is_told_of(folder, monkeypatch):
    """As by the kernel when memory is short."""
    monkeypatch.setattr(runner, "_attempt_in_process", _die)
    with pytest.raises(LabelLeakError, match="a worker process died"):
        records([experiment()], folder, workers=2)


def _die(task, parent):
    os.kill(os.getpid(), signal.SIGKILL)


def test_progress_is_told(folder):
    told = []
    records(
        [experiment(), STAGES[1]], folder, workers=1, progress=lambda *event: told.append(event)
    )
    train = "train fcn-3 on mnist-sample"
    assert told == [(train, done, 3) for done in (1, 2, 3)] + [
        ("trials", done, 6) for done in range(7)
    ]
    told.clear()
    records([experiment(trials=4)], folder, workers=1, progress=lambda *event: told.append(event))
    assert told == [("trials", 3, 4), ("trials", 4, 4)]
