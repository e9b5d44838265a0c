"""Time and answers of `auto`: a small untrained network, and trained ones of a hundred classes.

    python benchmarks/automatic.py --data-dir DIR [--output results/benchmark-automatic.json]

Settings are those of the leaderboard, with other sizes of the batch where a row says so; LeNet-5 is
trained, which it is not there. Networks that `labelleak compare` has not kept are trained first.
Time is the processor's, in one thread; searches end after 10 seconds by the clock of the wall.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

import labelleak
from labelleak.lab.definition import Experiment
from leaderboard_scenes import leaderboard, scenes_of
from measuring import Row, load, write

SECONDS = 10.0
UNTRAINED, LARGE, FEW, MANY = "FCN-3, untrained, K = 24", 48, 20, 200
TRAINED = (
    "ResNet-18, 100 classes, trained, K = 24",
    "VGG-16, 100 classes, trained, K = 24",
)
LENET = "LeNet-5, 100 classes, untrained, K = 24"


def settings() -> Iterator[tuple[str, Experiment, int]]:
    """Name, setting and number of batches of each row."""
    known = leaderboard()
    yield UNTRAINED, known[UNTRAINED], MANY
    lenet = known[LENET].model_dump()
    lenet["network"] |= {"seed": 13}
    lenet["training"] = {"unit": "iterations", "steps": 1000, "total": 1000}
    trained = [known[name].model_dump() for name in TRAINED]
    for one in (lenet, *trained):
        name = one["name"].partition(",")[0]
        larger = Experiment(**(one | {"batch": one["batch"] | {"size": LARGE}}))
        yield f"{name}, 100 classes, trained, K = {LARGE}", larger, FEW


def measured(name: str, experiment: Experiment, batches: int, folder: Path) -> Row:
    """What `auto` says of the first batches of a setting."""
    seconds, shares, right = [], [], 0
    spoke: Counter[str] = Counter()
    for scene in scenes_of(experiment, batches, folder):
        start = time.process_time()
        found = labelleak.restore(scene.observation, time_limit=SECONDS)
        seconds.append(time.process_time() - start)
        assert found.counts is not None, "the batch size is told"
        share = labelleak.score(found, scene.batch.true_counts).accuracy
        assert share is not None, "there are counts"
        shares.append(share)
        right += torch.equal(found.counts.cpu(), scene.batch.true_counts.cpu())
        spoke[found.attack] += 1
    return {
        "name": name,
        "batches": batches,
        "accuracy": round(statistics.fmean(shares), 4),
        "exact": right,
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_most": round(max(seconds), 3),
        "spoke": dict(spoke.most_common()),
    }


def main() -> None:
    """Measure, print and write row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = load(), []
    for name, experiment, batches in settings():
        rows.append(measured(name, experiment, batches, given.data_dir))
        print(rows[-1], flush=True)
        write(given.output, __doc__, before, 1, rows=rows)


if __name__ == "__main__":
    main()
