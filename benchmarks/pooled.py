"""Time and memory of `pooled` on a language model's head, against a sum over both matrices.

    python benchmarks/pooled.py [--output results/....json] [--classes 128000] [--features 4096]

The head is fresh from its initialization, and the gradient that of 64 samples whose embeddings
resemble each other, both in single precision. `sum` reads both matrices once. `pooled` is the
attack alone, `restore` with the checks and flags that come before and after every attack. They
take turns; ratios are medians over the turns, of the time that passes and of processor time.
Memory is what the peak of the process lies above the inputs (Linux only). Needs 8 bytes per entry
of the head.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import labelleak
from labelleak.attacks.mean_prediction.pooled import pooled
from measuring import Row, load, peak, reset_peak, write

NAMES = ("sum", "pooled", "restore")


def observation(classes: int, features: int, batch: int = 64) -> labelleak.Observation:
    """An untrained head, and the gradient of a batch with similar embeddings."""
    random = torch.Generator().manual_seed(0)
    bound = features**-0.5
    weight = torch.empty(classes, features).uniform_(-bound, bound, generator=random)
    common = torch.randn(features, generator=random)
    embeddings = (common + 0.3 * torch.randn(batch, features, generator=random)).relu_()
    labels = torch.randint(classes, (batch,), generator=random)
    error = torch.softmax(embeddings @ weight.T, dim=1)
    error[torch.arange(batch), labels] -= 1.0
    error /= batch
    gradient = labelleak.HeadGradient(error.T @ embeddings, error.sum(dim=0))
    head = labelleak.Head(weight, torch.zeros(classes))
    return labelleak.Observation(head, gradient, training=labelleak.LocalTraining(batch_size=batch))


def measure(seen: labelleak.Observation, name: str) -> Row:
    """Seconds and bytes of one call."""
    calls: dict[str, Callable[[], object]] = {
        "sum": lambda: (seen.head.weight.sum(), seen.gradient.weight.sum()),
        "pooled": lambda: pooled(seen),
        "restore": lambda: labelleak.restore(seen, "pooled"),
    }
    call = calls[name]
    before = reset_peak()
    start, used = time.perf_counter(), time.process_time()
    call()
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - used,
        "peak_bytes": peak() - before,
    }


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--classes", type=int, default=128_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    load_before, threads = load(), torch.get_num_threads()
    small, seen = observation(64, 32), observation(given.classes, given.features)
    for name in NAMES:
        measure(small, name)
    turns = [{name: measure(seen, name) for name in NAMES} for _ in range(given.turns)]
    print(f"{threads} threads, {given.classes} classes, {given.features} features")
    print(f"{'what':<10}{'s':>8}{'of sum':>8}{'cpu s':>8}{'of sum':>8}{'peak MB':>9}")
    results: list[Row] = []
    for name in NAMES:
        row: Row = {"name": name, "runs": given.turns}
        for key in ("seconds", "processor_seconds"):
            row[key] = statistics.median(turn[name][key] for turn in turns)
            row[f"{key}_ratio"] = statistics.median(
                turn[name][key] / turn["sum"][key] for turn in turns
            )
        row["peak_bytes"] = max(turn[name]["peak_bytes"] for turn in turns)
        results.append(row)
        print(
            f"{name:<10}{row['seconds']:>8.2f}{row['seconds_ratio']:>8.2f}"
            f"{row['processor_seconds']:>8.2f}{row['processor_seconds_ratio']:>8.2f}"
            f"{row['peak_bytes'] / 1e6:>9.1f}",
            flush=True,
        )
    write(
        given.output,
        __doc__,
        load_before,
        threads=threads,
        classes=given.classes,
        features=given.features,
        results=results,
    )


if __name__ == "__main__":
    main()
