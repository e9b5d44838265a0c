"""The paper's own scale in pieces, taken up again; and how long its trainings take here.

    python benchmarks/paper_scale.py run --data-dir ~/data --device cuda --out runs/paper
    python benchmarks/paper_scale.py estimate --data-dir ~/data [--output results/....json]

`run` starts `labelleak reproduce STUDY --scale paper` for one study after the other and interrupts
it after so many minutes (ten). The same command goes on: trials that are recorded and stages that
are trained are kept, and of a training at most the last minute is lost. It ends with status 0 once
every study is whole, and 1 while there is more to do.

One thing is not kept: a search for images is one trial. Those of figure 4 on ResNet-18 take 240,000
iterations, so that study is last, and a piece has to be as long as one of its trials (`--minutes`).

`estimate` takes some iterations of every training that the paper's figures need, on the CPU with
one thread, and records processor seconds for each; other programs on the machine make them longer.
"""

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from labelleak.lab import Experiment, paper
from labelleak.lab.datasets import Dataset
from labelleak.lab.definition import Network, Training
from labelleak.lab.materials import network_of, training_of, training_set
from labelleak.lab.pretraining import train, training_samples
from labelleak.lab.schedule import Schedule
from labelleak.lab.sources import find_sources
from labelleak.lab.store import FILE_NAME, read_records
from measuring import Row, load, write

# Its trials of a whole search each would hold up the others.
LAST = "figure4"
STUDIES = (*(name for name in paper.names() if name != LAST), LAST)
# How long an interrupted run may take to write what it has.
_GRACE = 60.0


def experiments(name: str, data_dir: Path | None) -> list[Experiment]:
    """The experiments of a study at the paper's own sizes."""
    return paper.study(name, "paper", find_sources(data_dir)).experiments


def open_trials(name: str, data_dir: Path | None, folder: Path) -> int:
    """How many trials of a study its folder has no record of."""
    file = folder / FILE_NAME
    made = {record["key"] for record in read_records(file)} if file.is_file() else set()
    keys = {
        one.trial_key(number) for one in experiments(name, data_dir) for number in range(one.trials)
    }
    return len(keys - made)


def run_piece(command: list[str], seconds: float) -> None:
    """Run a command, and interrupt it as Ctrl-C does when its time is over."""
    process = subprocess.Popen(command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(given: argparse.Namespace) -> int:
    """One piece: the first studies that are not whole, until the time is over."""
    end = time.monotonic() + 60.0 * given.minutes
    left: dict[str, int] = {}
    for name in given.studies:
        folder = given.out / name
        left[name] = open_trials(name, given.data_dir, folder)
        seconds = end - time.monotonic()
        if left[name] and seconds > 0:
            command = [sys.executable, "-m", "labelleak", "reproduce", name, "--scale", "paper"]
            command += ["--device", given.device, "--out", str(folder)]
            if given.data_dir is not None:
                command += ["--data-dir", str(given.data_dir)]
            if given.workers is not None:
                command += ["--workers", str(given.workers)]
            run_piece(command, seconds)
            left[name] = open_trials(name, given.data_dir, folder)
    for name, number in left.items():
        print(f"{name}: {f'{number} trials to go' if number else 'whole'}")
    if any(left.values()):
        print("The same command goes on from here.")
    return 1 if any(left.values()) else 0


class _EnoughError(Exception):
    """Ends a training that is only timed."""


def seconds_of(experiment: Experiment, dataset: Dataset, iterations: int) -> float:
    """Processor seconds of an iteration of an experiment's training, after the first."""
    stage = training_of(experiment)
    assert stage is not None, "the caller has asked for it"
    times: list[float] = []

    def look(done: int, total: int) -> None:
        times.append(time.process_time())
        if len(times) > iterations:
            raise _EnoughError

    # Of this seed the cache has no stage to go on from; nothing is kept of it, either.
    stage = stage.model_copy(update={"seed": stage.seed + 1})
    with contextlib.suppress(_EnoughError):
        train(network_of(experiment), [stage], dataset, progress=look, checkpoint_seconds=math.inf)
    return (times[-1] - times[0]) / (len(times) - 1)


def estimate(given: argparse.Namespace) -> int:
    """Time every training of the paper, one row for each network and data set."""
    torch.set_num_threads(1)
    before = load()
    stages: dict[tuple[Network, str, Training], dict[Experiment, str]] = {}
    for name in given.studies:
        for one in experiments(name, given.data_dir):
            stage = training_of(one)
            if stage is not None:
                whole = stage.model_copy(update={"steps": 0})
                stages.setdefault((network_of(one), one.data, whole), {})[one] = name
    rows: list[Row] = []
    for (network, data, whole), found in stages.items():
        one = next(iter(found))
        dataset = training_set(one, given.data_dir)
        per_step = Schedule(whole, training_samples(whole, dataset)).per_step
        ends = [stage.steps * per_step for e in found if (stage := training_of(e)) is not None]
        rows.append(
            {
                "network": network.label,
                "data": data,
                "stands_in_for": one.stands_in_for,
                "studies": list(dict.fromkeys(found.values())),
                "first": min(ends),
                "last": max(ends),
                "iterations": given.iterations,
                "seconds_per_iteration": seconds_of(one, dataset, given.iterations),
            }
        )
        print(rows[-1], flush=True)
    write(given.output, __doc__, before, threads=1, rows=rows)
    return 0


def main() -> None:
    """Run a piece, or time the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["run", "estimate"])
    parser.add_argument("--data-dir", type=Path, help="as of labelleak reproduce")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("labelleak-runs/paper"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, help="as of labelleak reproduce")
    parser.add_argument("--minutes", type=float, default=10.0, help="of this piece")
    parser.add_argument("--iterations", type=int, default=3, help="timed of each training")
    parser.add_argument("--output", type=Path, help="record of the estimate")
    given = parser.parse_args()
    sys.exit(run(given) if given.what == "run" else estimate(given))


if __name__ == "__main__":
    main()
