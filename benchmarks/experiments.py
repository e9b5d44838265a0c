"""Memory of a large batch of photographs, and time saved by a second worker.

    python benchmarks/experiments.py memory --data-dir ~/data [--output results/....json]
    python benchmarks/experiments.py workers [--output results/....json]

`memory`: one trial through ResNet-18 with the ImageNet stem on crops of 224 x 224 pixels, of the
split `test` of `imagenet` with replacement, in a process of its own: the peak of that process from
its start, with Python, PyTorch and the network in it (Linux only). Time is processor time.

`workers`: the same trials (LeNet-5 and ResNet-18 on the embedded digits) one after the other in one
process, by joblib in two, and on a Dask scheduler on this machine with one and with two workers of
one thread each. The four take turns, and each starts anew: the time is that of the whole run, the
workers' imports included, but not the start of scheduler and workers. Ratios are to Dask with one
worker, each way by its fastest turn. All records are compared, as text.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from labelleak.lab.definition import Batch, Experiment, Network
from labelleak.lab.runner import run
from labelleak.lab.store import Store
from labelleak.lab.trial import run_trial
from measuring import Row, in_own_process, load, peak, write

BATCH_SIZES = (64, 4096)
TURNS = 3
TRIALS = 28


class Way(NamedTuple):
    """How trials are run: on how many workers, of Dask or of one machine."""

    name: str
    workers: int
    dask: bool


BASELINE = Way("dask-1", 1, dask=True)
WAYS = (
    BASELINE,
    Way("dask-2", 2, dask=True),
    Way("one-process", 1, dask=False),
    Way("joblib-2", 2, dask=False),
)


def photographs(batch_size: int) -> Experiment:
    """A batch of photographs; fewer than a large batch needs are each used several times."""
    return Experiment(
        name=f"K = {batch_size}",
        data="imagenet",
        data_split="test",
        network=Network(name="resnet18", stem="imagenet"),
        batch=Batch(size=batch_size, replacement=True),
        attacks=("ilrg",),
        trials=1,
        range="all",
    )


def digits(trials: int) -> list[Experiment]:
    """Trials of two lengths, so that workers do not end in step."""
    return [
        Experiment(
            name=name,
            data="mnist-sample",
            network=Network(name=name),
            batch=Batch(size=size),
            attacks=("ilrg", "rlg"),
            trials=trials,
            range="all",
        )
        for name, size in (("lenet5", 1024), ("resnet18", 64))
    ]


def trial_of_photographs(batch_size: int, data_dir: str) -> Row:
    """Processor time and peak memory of one trial (run in a fresh process)."""
    start = time.process_time()
    record = run_trial(photographs(batch_size), 0, data_dir)
    error = record["attacks"]["ilrg"]["error"]
    if error:
        raise RuntimeError(error)
    return {
        "batch_size": batch_size,
        "seconds": time.process_time() - start,
        "peak_bytes": peak(),
    }


def run_digits(way: Way, trials: int) -> tuple[float, str]:
    """Seconds of a run, and its records in the order of their keys (run in a fresh process)."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(folder) as store,
        workers_of(way) as address,
    ):
        start = time.perf_counter()
        summary = run(digits(trials), store, workers=way.workers, dask=address)
        taken = time.perf_counter() - start
        if summary.failed:
            raise RuntimeError(str(summary.failed))
        records = sorted(store.records(), key=lambda record: str(record["key"]))
    return taken, json.dumps(records)


@contextlib.contextmanager
def workers_of(way: Way) -> Iterator[str | None]:
    """Starts and ends the workers; yields the address of the Dask scheduler, if there is one."""
    if way.dask:
        with cluster(way.workers) as address:
            yield address
        return
    yield None
    if way.workers > 1:
        # Otherwise joblib's idle processes keep this one running for minutes.
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown()


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """A Dask scheduler on this machine with workers of one thread: its address."""
    from distributed import Client

    started = []

    def start(program: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *options]
        place = ("--no-dashboard", "--scheduler-file", "scheduler")
        started.append(subprocess.Popen([*command, *place], cwd=folder, stderr=subprocess.DEVNULL))

    with tempfile.TemporaryDirectory() as folder:
        try:
            start("scheduler", "--host", "127.0.0.1", "--port", "0")
            for _ in range(workers):
                # A nanny returns memory to the system at once (MALLOC_TRIM_THRESHOLD_), which makes
                # networks about a fifth slower.
                start("worker", "--no-nanny", "--nthreads", "1")
            file = Path(folder, "scheduler")
            while not file.exists():
                time.sleep(0.1)
            with Client(scheduler_file=str(file)) as client:  # type: ignore[no-untyped-call]
                client.wait_for_workers(workers)
                address = str(client.scheduler.address)
            yield address
        finally:
            for process in started:
                process.kill()
                process.wait()


def measure_memory(data_dir: Path) -> Row:
    """Peak memory for each batch size."""
    results = []
    print(f"{'K':>5}{'s':>9}{'peak MB':>10}")
    for batch_size in BATCH_SIZES:
        row = in_own_process(trial_of_photographs, batch_size, str(data_dir))
        results.append(row)
        print(f"{batch_size:>5}{row['seconds']:>9.1f}{row['peak_bytes'] / 1e6:>10.1f}", flush=True)
    return {"results": results}


def measure_workers() -> Row:
    """Time of each way, and whether all gave the same records."""
    times: dict[Way, list[float]] = {way: [] for way in WAYS}
    records = set()
    for _ in range(TURNS):
        for way in WAYS:
            taken, found = in_own_process(run_digits, way, TRIALS)
            times[way].append(taken)
            records.add(found)
    results = [
        {
            "name": way.name,
            "seconds": min(taken),
            "ratio": min(taken) / min(times[BASELINE]),
            "all_seconds": taken,
        }
        for way, taken in times.items()
    ]
    print(f"{'way':<12}{'s':>9}{'of ' + BASELINE.name:>11}")
    for row in results:
        print(f"{row['name']:<12}{row['seconds']:>9.1f}{row['ratio']:>11.3f}")
    same = len(records) == 1
    print(f"records the same, bit for bit: {'yes' if same else 'NO'}")
    return {"trials": len(digits(TRIALS)) * TRIALS, "same_records": same, "results": results}


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("memory", "workers"))
    parser.add_argument("--data-dir", type=Path, help="a folder with imagenet, for memory")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    load_before = load()
    if arguments.what == "workers":
        figures = measure_workers()
    elif arguments.data_dir is not None:
        figures = measure_memory(arguments.data_dir)
    else:
        parser.error("memory needs --data-dir")
    write(arguments.output, __doc__, load_before, threads=1, **figures)


if __name__ == "__main__":
    main()
