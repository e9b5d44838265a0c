"""A sweep that is killed, starved and doubled: is a record lost, doubled or different?

    python benchmarks/interrupted.py [--kills 100] [--only kill dask]
        [--output results/benchmark-interrupted.json]

A sweep of 400 trials, one network and one batch each, runs whole in one process, and then again in
a fresh folder under each of these, until it is whole there, too:

- ``kill``: ``kill -9`` at random moments, the same command again after each;
- ``disk``: the disk is full in the middle (a small tmpfs where this user may mount one, otherwise a
  limit on the size of a file), then it has room again;
- ``two``: a second run in the folder while the first one is at work;
- ``core``: one core alone, with the default number of workers;
- ``worker``: one of two worker processes is killed, then the same command again;
- ``dask-worker``: one of two Dask workers is killed;
- ``dask-scheduler``: the Dask scheduler is killed, then the sweep goes on without it.

A row says how often the sweep was started, what the runs that did not finish said, and of the
records at the end how many are lost, doubled or different from those of the whole run. ``torn`` is
how many whole lines a later run found gone. Rows of other scenarios stay in the output. Linux only.
Exit status 1: any of these is not 0.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
from labelleak.errors import LabelLeakError
from labelleak.lab.definition import Batch, Experiment, Network
from labelleak.lab.runner import run
from labelleak.lab.store import FILE_NAME, Store

EXPERIMENTS = [
    Experiment(
        name=f"K = {size}",
        data="mnist-sample",
        network=Network(name="fcn-3"),
        batch=Batch(size=size),
        attacks=("ilrg", "rlg"),
        trials=100,
    )
    for size in (8, 24, 64, 128)
]
FORK = multiprocessing.get_context("fork")  # a child that has imported everything
Row = dict[str, Any]


def sweep(folder: Path, **options: Any) -> str:
    """Run what the folder lacks; the line of the error that ended it, if one did."""
    try:
        with Store(folder) as store:
            failed = run(EXPERIMENTS, store, **options).failed
    except LabelLeakError as error:
        return str(error)
    return f"failed: {failed}" if failed else ""


def started(folder: Path, prepare: Callable[[], object] | None = None, **options: Any) -> "Child":
    """Start a sweep in a process group of its own."""
    return Child(folder, prepare, options)


class Child:
    """A sweep in another process."""

    def __init__(
        self, folder: Path, prepare: Callable[[], object] | None, options: dict[str, Any]
    ) -> None:
        def main() -> None:
            if prepare is not None:
                prepare()
            with os.fdopen(writing, "w") as file:
                file.write(sweep(folder, **options))

        reading, writing = os.pipe()
        self.process = FORK.Process(target=main)
        self.process.start()
        assert self.process.pid is not None
        os.setpgid(self.process.pid, 0)  # of what it starts, too
        os.close(writing)
        self._said = os.fdopen(reading)

    def said(self) -> str:
        """What it said, once it has ended."""
        with self._said as file:
            text = file.read()
        self.process.join()
        return text

    def alive(self) -> bool:
        """Whether it is still at work."""
        return self.process.is_alive()

    def kill(self) -> None:
        """End it and all that it started, at once."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self._said.close()


class Fresh:
    """A sweep in a new interpreter: a forked one does not end the worker processes it started."""

    def __init__(self, folder: Path, workers: int) -> None:
        command = [sys.executable, __file__, "--sweep", str(folder), str(workers)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def alive(self) -> bool:
        """Whether it is still at work."""
        return self.process.poll() is None

    def said(self) -> str:
        """What it said, once it has ended."""
        return self.process.communicate()[0].strip()


def whole_lines(folder: Path) -> list[bytes]:
    path = folder / FILE_NAME
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def wait_for(folder: Path, lines: int, child: Child | Fresh) -> None:
    """Wait until the sweep has made so many records, or has ended."""
    while len(whole_lines(folder)) < lines and child.alive():
        time.sleep(0.005)


def kill(folder: Path, kills: int) -> Row:
    """Kill a sweep in one process at random moments, then let it end."""
    rng = random.Random(0)
    torn, landed = 0, 0
    for _ in range(kills):
        before = whole_lines(folder)
        if len(before) >= sum(e.trials for e in EXPERIMENTS) - 20:
            # Nearly done: go on with the first half of it, and a torn line.
            (folder / FILE_NAME).write_bytes(b"\n".join(before[: len(before) // 2]) + b"\n{")
            before = whole_lines(folder)
        child = started(folder, workers=1)
        if rng.random() < 0.8:  # at work, and not getting ready
            wait_for(folder, len(before) + 1, child)
        time.sleep(rng.uniform(0.0, 0.3))
        child.kill()
        after = whole_lines(folder)
        torn += after[: len(before)] != before
        landed += len(after) > len(before)
    said = started(folder, workers=1).said()
    return {"starts": kills + 1, "said": [said], "torn": torn, "killed_after_new_records": landed}


def disk(folder: Path, _: int) -> Row:
    """Run out of space in the middle of a line."""
    size = 64 * 1024
    mounted = os.geteuid() == 0
    if mounted:
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    limit = (size + 1000, size + 1000)
    prepare = None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = [started(folder, prepare, workers=1).said()]
    before = whole_lines(folder)
    if mounted:
        grow = ["mount", "-o", "remount,size=64m", str(folder)]
        subprocess.run(grow, check=True)
    said.append(started(folder, workers=1).said())
    torn = int(whole_lines(folder)[: len(before)] != before)
    return {"starts": 2, "said": said, "torn": torn, "how": "tmpfs" if mounted else "RLIMIT_FSIZE"}


def two(folder: Path, _: int) -> Row:
    """Start a second run while the first one is at work."""
    first = started(folder, workers=1)
    wait_for(folder, 20, first)
    said = [started(folder, workers=1).said() for _ in range(3)]
    return {"starts": 4, "said": [*said, first.said()]}


def core(folder: Path, _: int) -> Row:
    """One core, and the default number of workers."""
    one = {min(os.sched_getaffinity(0))}
    return {"starts": 1, "said": [started(folder, lambda: os.sched_setaffinity(0, one)).said()]}


def worker(folder: Path, _: int) -> Row:
    """Kill one of two worker processes."""
    child = Fresh(folder, workers=2)
    wait_for(folder, 20, child)
    os.kill(workers_of(child)[0], signal.SIGKILL)
    return {"starts": 2, "said": [child.said(), Fresh(folder, workers=2).said()]}


def workers_of(child: Fresh) -> list[int]:
    """The worker processes of a sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if parent == child.process.pid and "popen_loky" in command:
            found.append(int(path.name))
    return found


@contextmanager
def cluster(scratch: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers: its address, and the processes, the scheduler first."""
    begin = [sys.executable, "-m"]
    end = ["--no-dashboard", "--scheduler-file", "scheduler"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    one = ["distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1"]
    processes: list[subprocess.Popen[bytes]] = []
    with (scratch / "log").open("wb") as log:
        try:
            processes += [
                subprocess.Popen([*begin, *command, *end], cwd=scratch, stdout=log, stderr=log)
                for command in (scheduler, one, one)
            ]
            while not (scratch / "scheduler").exists():
                time.sleep(0.1)
            yield json.loads((scratch / "scheduler").read_text())["address"], processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def on_dask(folder: Path, victim: int) -> Row:
    """Kill the scheduler (0) or a worker (1), then finish what is left in one process."""
    with tempfile.TemporaryDirectory() as name, cluster(Path(name)) as (address, processes):

        def kill_one() -> None:
            while len(whole_lines(folder)) < 20:
                time.sleep(0.01)
            processes[victim].kill()

        # Not in a forked child: the cluster's client has threads.
        threading.Thread(target=kill_one, daemon=True).start()
        said = [sweep(folder, dask=address, connect_seconds=60)]
    if said[0]:
        said.append(sweep(folder, workers=1))
    return {"starts": len(said), "said": said}


SCENARIOS: dict[str, Callable[[Path, int], Row]] = {
    "kill": kill,
    "disk": disk,
    "two": two,
    "core": core,
    "worker": worker,
    "dask-worker": lambda folder, _: on_dask(folder, 1),
    "dask-scheduler": lambda folder, _: on_dask(folder, 0),
}


def judged(row: Row, folder: Path, expected: dict[str, bytes]) -> Row:
    """The row with what became of the records."""
    lines = whole_lines(folder)
    found = {json.loads(line)["key"]: line for line in lines}
    common = expected.keys() & found.keys()
    return {
        "torn": 0,
        **row,
        "records": len(lines),
        "lost": len(expected.keys() - found.keys()),
        "doubled": len(lines) - len(found),
        "different": sum(found[key] != expected[key] for key in common),
        "strange": len(found.keys() - expected.keys()),
    }


def main() -> int:
    """Run the scenarios, print what became of the records, write it down."""
    if sys.argv[1:2] == ["--sweep"]:
        print(sweep(Path(sys.argv[2]), workers=int(sys.argv[3])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    load = measuring.load()
    rows: list[Row] = []
    if options.output is not None and options.output.exists():
        rows = json.loads(options.output.read_text())["rows"]
    with tempfile.TemporaryDirectory(prefix="labelleak-interrupted-") as name:
        whole = Path(name, "whole")
        # In this process, so that the children have the data and the networks ready, too.
        assert not sweep(whole, workers=1)
        expected = {json.loads(line)["key"]: line for line in whole_lines(whole)}
        print(f"{len(expected)} records in the whole run", flush=True)
        for what in options.only:
            folder = Path(name, what)
            try:
                row = judged(SCENARIOS[what](folder, options.kills), folder, expected)
            finally:
                if os.path.ismount(folder):
                    subprocess.run(["umount", str(folder)], check=True)
            # Paths of this run say nothing.
            row["said"] = [text.replace(name, "...") for text in row["said"]]
            rows = [other for other in rows if other["scenario"] != what]
            rows.append({"scenario": what, **row})
            print(rows[-1], flush=True)
            measuring.write(options.output, __doc__, load, 1, rows=rows)
    wrong = ("torn", "lost", "doubled", "different", "strange")
    return any(row[key] for row in rows for key in wrong)


if __name__ == "__main__":
    sys.exit(main())
