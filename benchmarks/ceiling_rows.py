"""The ceiling on the leaderboard's rows: does a recorded attack of moments exceed it?

    python benchmarks/ceiling_rows.py --data-dir DIR [--trials 5] [--output FILE]

The batches of the first trials are drawn again; the ceiling is computed from them and 2,000 more
samples of the site. Attacks are not run again: their accuracies are those of the records.
Rows with a defense are left out, as the ceiling is that of a plain update, and so are those without
a ceiling (several steps) or a trained network (`labelleak compare` trains them).
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from labelleak.audit.ceiling import moment_ceiling
from labelleak.errors import LabelLeakError
from labelleak.lab.datasets import draw
from labelleak.lab.definition import Experiment
from labelleak.lab.experiment_grid import read_grid
from labelleak.lab.ranges import RANGES
from labelleak.lab.trial import set_up
from measuring import Row, load, write

MOMENTS = ("pooled", "calibrated", "damped", "mbi", "llbg", "rlu", "likelihood")
OTHERS = 2_000


def ceiling_of_trial(experiment: Experiment, index: int, folder: Path) -> float:
    """The ceiling on the batch of a trial."""
    scene = set_up(experiment, index, folder)
    seed = RANGES[experiment.range].derive("ceiling rows", index)
    more = scene.dataset.batch(draw("random", scene.dataset.labels, OTHERS, seed))
    inputs = torch.cat([scene.batch.inputs(), more[0]])
    labels = torch.cat([scene.batch.targets.cpu(), more[1]])
    return moment_ceiling(scene.observation, scene.batch.true_counts, inputs, labels).accuracy


def row_of(experiment: Experiment, records: dict[int, Any], folder: Path, trials: int) -> Row:
    """Excess of each attack over the ceiling, with the error of its mean."""
    tops = [ceiling_of_trial(experiment, index, folder) for index in range(trials)]
    top = round(statistics.fmean(tops), 4)
    row: Row = {"name": experiment.name, "trials": trials, "ceiling": top, "excess": {}}
    for name in MOMENTS:
        found = [records[index]["attacks"].get(name, {}).get("counts") for index in range(trials)]
        if any(one is None for one in found):
            continue
        over = [one["accuracy"] - top for one, top in zip(found, tops, strict=True)]
        row["excess"][name] = {
            "mean": round(statistics.fmean(over), 4),
            "error": round(statistics.stdev(over) / len(over) ** 0.5, 4),
        }
    return row


def main() -> None:
    """Measure, print and write row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = load(), []
    kept: dict[str, dict[int, Any]] = {}
    for line in Path("results/leaderboard/records.jsonl").read_text().splitlines():
        record = json.loads(line)
        kept.setdefault(record["experiment"], {})[record["trial"]] = record
    for experiment in read_grid("results/leaderboard/grid.toml"):
        if experiment.defense.name != "none" or experiment.name not in kept:
            continue
        try:
            rows.append(row_of(experiment, kept[experiment.name], given.data_dir, given.trials))
        except LabelLeakError as error:
            print(f"{experiment.name}: left out: {error}", flush=True)
            continue
        print(rows[-1], flush=True)
        write(given.output, __doc__, before, 1, rows=rows)


if __name__ == "__main__":
    main()
