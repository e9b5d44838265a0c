"""Published figures of one network, beside those of many networks trained alike.

    python benchmarks/one_network.py --data-dir ~/data [--networks 12] [--output results/....json]

A published figure is the mean over the batches of one network, and so is ours: its interval covers
the choice of the batches alone. This trains networks of other seeds (initial weights and order of
the samples) for every row of `labelleak reproduce` of which nothing is known to differ, attacks the
same batches on each, and records the figure of every network. `low` to `high` is where the figure
of one more network on the same batches is with a probability of 95 % (Student's t for a new draw);
a published figure is of other batches, which this leaves out. An interrupted run goes on from its
folder (`--runs`), which keeps records and trained networks; the output is written after every row.
"""

import argparse
import json
import math
import os
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from fidelity_tables import QUICK, compared, is_one_network
from labelleak.lab import Experiment, paper, run_all
from labelleak.lab.metric_catalog import metric
from labelleak.lab.sources import find_sources
from measuring import Row, load, write

ROOT = Path(__file__).parent.parent
# The seed of the recorded run is 13.
FIRST_SEED = 101


def rows_of_one_network() -> list[tuple[str, str, dict[str, Any]]]:
    """Study, label and compared figures of the rows of which nothing is known to differ."""
    content = json.loads((ROOT / QUICK).read_text(encoding="utf-8"))
    found = []
    for study, row, cells in compared(lambda path: content):
        kept = {name: cell for name, cell in cells.items() if is_one_network(row, name)}
        if kept and any(not cell["inside"] for cell in kept.values()):
            found.append((study["name"], row["label"], kept))
    return found


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The same experiment on another network; batches are drawn as before."""
    changes: dict[str, Any] = {
        "name": f"{experiment.name}, network {seed}",
        "network": experiment.network.model_copy(update={"seed": seed}),
    }
    if experiment.training is not None:
        changes["training"] = experiment.training.model_copy(update={"seed": seed})
    return experiment.model_copy(update=changes)


def spread(values: list[float]) -> tuple[float, float]:
    """The 95 % interval for one more value."""
    number = len(values)
    half = float(stats.t.ppf(0.975, number - 1)) * stdev(values) * math.sqrt(1 + 1 / number)
    return fmean(values) - half, fmean(values) + half


def main() -> None:
    """Train, attack, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=Path("labelleak-runs/one-network"))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.environ["LABELLEAK_CACHE"] = str(given.runs / "cache")
    before, sources = load(), find_sources(given.data_dir)
    seeds = range(FIRST_SEED, FIRST_SEED + given.networks)
    rows: list[Row] = []
    for study_name, label, cells in rows_of_one_network():
        study = paper.study(study_name, "quick", sources)
        (row,) = (row for row in study.rows if row.label == label)
        experiments = [with_seed(row.experiment, seed) for seed in seeds]
        results = run_all(experiments, given.runs, data_dir=given.data_dir)
        for name, cell in cells.items():
            figures = [
                fmean(
                    value
                    for record in results.records
                    if record["experiment"] == one.name
                    and (value := metric(name).value(one, record)) is not None
                )
                for one in experiments
            ]
            low, high = spread(figures)
            published = cell["published"]
            found = {"study": study_name, "row": label, "metric": name, "published": published}
            found |= {"figures": figures, "low": low, "high": high}
            rows.append(found | {"inside": low <= published <= high})
            print(f"{label}, {name}: {published} in {low:.3f} to {high:.3f}", flush=True)
        write(given.output, __doc__, before, threads=1, networks=given.networks, rows=rows)


if __name__ == "__main__":
    main()
