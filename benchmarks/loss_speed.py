"""Whether the plain cross-entropy got slower with other losses: a ratio to an earlier checkout.

    python benchmarks/loss_speed.py --baseline DIR [--output results/benchmark-loss-speed.json]

DIR is a checkout of an earlier commit, such as the last one without `labelleak.Loss`. Fresh
processes of the two take turns. Each makes the same captures and restorations of heads of several
sizes, and takes the least processor time of one thread over repetitions, which other work on the
machine changes least. A ratio is the median over the turns of this checkout's time by that of the
baseline.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import labelleak
from measuring import Row, load, write

TURNS, REPETITIONS = 9, 100
# Classes, features and samples.
HEADS = ((10, 300, 64), (100, 512, 64), (1000, 512, 256))


def seconds(call: Callable[[], object]) -> float:
    """Least processor time of a call."""
    call()
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def measured() -> dict[str, float]:
    """Seconds of every task with the labelleak that is imported."""
    torch.set_num_threads(1)
    found = {}
    for classes, features, samples in HEADS:
        random = torch.Generator().manual_seed(0)
        model = torch.nn.Sequential()
        model.add_module("fc", torch.nn.Linear(features, classes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.05, 0.05, generator=random)
        inputs = torch.rand(samples, features, generator=random)
        labels = torch.randint(classes, (samples,), generator=random)
        seen = labelleak.capture(model.eval(), inputs, labels)
        where = f"{classes} classes"
        found[f"capture, {where}"] = seconds(partial(labelleak.capture, model, inputs, labels))
        for attack in ("pooled", "ilrg"):
            found[f"{attack}, {where}"] = seconds(partial(labelleak.restore, seen, attack))
    return found


def in_checkout(folder: Path) -> dict[str, float]:
    """The same in a fresh process that imports the labelleak of a checkout."""
    path = os.pathsep.join([str(folder / "src"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, __file__, "--measure"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def commit(folder: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Take turns, print and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured()))
        return
    if given.baseline is None:
        parser.error("--baseline is needed: a checkout of an earlier commit")
    before, own = load(), Path(__file__).parent.parent
    turns = [(in_checkout(own), in_checkout(given.baseline)) for _ in range(TURNS)]
    rows = list[Row]()
    for task in turns[0][0]:
        ratio = statistics.median(new[task] / old[task] for new, old in turns)
        here = statistics.median(new[task] for new, _ in turns)
        rows.append({"title": task, "milliseconds": round(1e3 * here, 3), "ratio": round(ratio, 4)})
        print(f"{task:<24}{1e3 * here:>9.3f} ms{ratio:>8.3f}")
    write(
        given.output,
        __doc__,
        before,
        threads=1,
        baseline=commit(given.baseline),
        turns=TURNS,
        repetitions=REPETITIONS,
        median_ratio=round(statistics.median(row["ratio"] for row in rows), 4),
        rows=rows,
    )


if __name__ == "__main__":
    main()
