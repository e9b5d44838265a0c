"""Restorations of made-up updates: is what is certain true, does nothing crash, do limits hold?

    python benchmarks/fuzz.py truth --first 700000 --seeds 5000 --rows fuzz-truth.jsonl
    python benchmarks/fuzz.py lie --first 710000 --seeds 2000 --rows fuzz-lie.jsonl
    python benchmarks/fuzz.py limits --first 720000 --seeds 500 --rows fuzz-limits.jsonl
    python benchmarks/fuzz.py confident --first 750000 --seeds 1000 --rows fuzz-confident.jsonl
    python benchmarks/fuzz.py whole --first 730000 --seeds 1000 --rows fuzz-whole.jsonl
    python benchmarks/fuzz.py whole-lie --first 740000 --seeds 1000 --rows fuzz-whole-lie.jsonl
                              [--output results/benchmark-fuzz.json]

Each seed makes a head, a batch and its gradient (`made_up.py`), or the whole update of a layer and
a head (`made_up_layers.py`), and restores it: by `exact` or `auto`, and `limits` by any attack.
Every seed is one line of the rows, written as soon as it ends, and the same command resumes where
it was interrupted. The summary of all rows stands in the output under the name of the mode, with
the seeds of everything that should not be.

Time is the processor's, in one thread, also for the attacks themselves: a limit is broken where it
is exceeded by half of it and 0.3 seconds. Where a fact is wrong, `certain` may be too high, and
only a certificate counts.
"""

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Attacks read the same clock as the measurement, whatever else the machine is doing.
    time.monotonic = time.process_time

import torch

import labelleak
from made_up import Draw, Made, claims, confident, lies, truth
from made_up_layers import whole_lies, whole_truth
from measuring import load, write

MODES = {
    "truth": truth,
    "lie": lies,
    "limits": claims,
    "confident": confident,
    "whole": whole_truth,
    "whole-lie": whole_lies,
}
# A total that nobody told is nonsense above this many times the samples there are.
NONSENSE = 8
# What a limit may be exceeded by: a share of it, and seconds.
OVER_BY, SLACK = 1.5, 0.3


def row_of(seed: int, mode: str) -> dict[str, Any]:
    """Restore one made-up observation and judge the result."""
    draw = Draw(seed + 77)
    attacks = list(labelleak.list_attacks()) if mode == "limits" else ["exact"]
    attack, limit = draw.one_of("auto", draw.one_of(*attacks)), draw.one_of(2.0, 3.0, 5.0)
    row: dict[str, Any] = {"seed": seed, "attack": attack, "limit": limit}
    start = time.process_time()
    try:
        made = MODES[mode](seed)
        row |= made.facts
        start = time.process_time()
        found = labelleak.restore(made.observation, attack, time_limit=limit)
    except labelleak.LabelLeakError as error:
        row |= {"refused": str(error)[:120]}
    except Exception:
        row |= {"crash": traceback.format_exc()[-600:]}
    else:
        row |= judged(made, found)
    row["seconds"] = round(time.process_time() - start, 3)
    row["late"] = row["seconds"] > OVER_BY * limit + SLACK
    return row


def judged(made: Made, found: labelleak.Restoration) -> dict[str, Any]:
    """Whether what a restoration claims is so."""
    counts, certain, true = found.counts, found.certain, made.counts
    right = counts is not None and torch.equal(counts.cpu(), true)
    return {
        "by": found.attack,
        "right": right,
        "flags": [flag.name for flag in found.flags],
        "certified": found.certified,
        "certain": 0 if certain is None else int(certain.sum()),
        "too_high": 0 if certain is None else int((certain - true).clamp_min(0).sum()),
        "nonsense": counts is not None
        and made.observation.batch_size is None
        and int(counts.sum()) > NONSENSE * int(true.sum()),
    }


def summary(rows: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    """How many there are of each kind, and the seeds of those that should not be."""
    counted = [row for row in rows if "by" in row]
    wrong = {
        "certified but wrong": [r["seed"] for r in counted if r["certified"] and not r["right"]],
        "crashed": [row["seed"] for row in rows if "crash" in row],
        "late": [row["seed"] for row in rows if row["late"]],
        "nonsense total": [row["seed"] for row in counted if row["nonsense"]],
    }
    if not mode.endswith("lie"):
        wrong["certain too high"] = [row["seed"] for row in counted if row["too_high"]]
    seconds = [row["seconds"] for row in rows]
    return {
        "seeds": [min(row["seed"] for row in rows), max(row["seed"] for row in rows)],
        "restorations": len(rows),
        "refused": sum("refused" in row for row in rows),
        "certified": sum(row["certified"] for row in counted),
        "samples certain": sum(row["certain"] for row in counted),
        "right": sum(row["right"] for row in counted),
        "median seconds": round(statistics.median(seconds), 3),
        "most of a limit": round(max(row["seconds"] / row["limit"] for row in rows), 2),
        "wrong": wrong,
    }


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an earlier run; a line that was cut off is none."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = load()
    wanted = range(options.first, options.first + options.seeds)
    rows = [row for row in read(options.rows) if row["seed"] in wanted]
    # Whatever was cut off is written again.
    options.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = {row["seed"] for row in rows}
    with options.rows.open("a", encoding="utf-8") as file:
        for seed in wanted:
            if seed not in done:
                rows.append(row_of(seed, options.mode))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
    result = summary(rows, options.mode)
    print(json.dumps(result, indent=1))
    modes = {options.mode: result}
    if options.output is not None and options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        modes = earlier.get("modes", {}) | modes
    write(options.output, __doc__, load_before, 1, modes=modes)


if __name__ == "__main__":
    main()
