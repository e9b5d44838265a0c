"""Time and peak memory of the attacks on a head, as ratios to a plain iLRG in the same run.

    python benchmarks/restoration.py [--output results/benchmark-restoration.json]

Attacks that need more than the head are left out. Every measurement has a process of its own. Time
is the median of the repetitions; memory is the peak of the resident set above what stood before the
attack ran, inputs included in the latter (Linux only).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import labelleak
from measuring import in_own_process, load, peak, reset_peak, write
from plain import entry_by_entry, plain_ilrg, row_by_row

SIZES = [(10, 300, 24), (100, 84, 24), (1000, 2048, 24), (1000, 4096, 2048)]
BASELINES = {"plain-numpy": row_by_row, "plain-published": entry_by_entry}
PINV = "numpy.linalg.pinv"
_LONGEST = 3.0


def observation(
    classes: int, features: int, batch: int, number: int = 0
) -> tuple[labelleak.Observation, torch.Tensor]:
    """An untrained head with similar, non-negative embeddings, float32; and the true labels."""
    random = torch.Generator().manual_seed(classes + features + batch + number)
    bound = features**-0.5
    weight = torch.empty(classes, features).uniform_(-bound, bound, generator=random)
    bias = torch.empty(classes).uniform_(-bound, bound, generator=random)
    common = torch.randn(features, generator=random)
    own = torch.randn(batch, features, generator=random)
    embeddings = (common + 0.3 * own).relu_()
    labels = torch.randint(classes, (batch,), generator=random)
    error = torch.softmax(embeddings @ weight.T + bias, dim=1)
    error[torch.arange(batch), labels] -= 1.0
    error /= batch
    seen = labelleak.Observation(
        labelleak.Head(weight, bias),
        labelleak.HeadGradient(error.T @ embeddings, error.sum(dim=0)),
        training=labelleak.LocalTraining(batch_size=batch),
    )
    return seen, labels


def measure(size: tuple[int, int, int], what: str) -> dict[str, Any]:
    """Seconds and peak bytes of one attack or baseline at one size (run in a fresh process)."""
    run = prepared(size, what)
    if what != PINV:
        prepared((10, 8, 4), what)()
    before = reset_peak()
    seconds: list[float] = []
    error = None
    while not seconds or (len(seconds) < 7 and sum(seconds) < _LONGEST):
        start = time.perf_counter()
        try:
            run()
        except labelleak.LabelLeakError as refused:
            error = str(refused)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "runs": len(seconds),
        "peak_bytes": peak() - before,
        "refused": error,
    }


def prepared(size: tuple[int, int, int], what: str) -> Callable[[], object]:
    """The call to measure, with its inputs already made."""
    if what == PINV:
        matrix = np.random.default_rng(0).standard_normal((size[0] + 1, size[0]))
        return lambda: np.linalg.pinv(matrix)
    seen, _ = observation(*size)
    if what in BASELINES:
        assert seen.head.bias is not None
        assert seen.gradient.bias is not None
        pair = (seen.head.weight, seen.head.bias, seen.gradient.weight, seen.gradient.bias)
        arrays = [tensor.double().numpy() for tensor in pair]
        return lambda: plain_ilrg(
            arrays[0], arrays[1], arrays[2], arrays[3], size[2], BASELINES[what]
        )
    return lambda: labelleak.restore(seen, what)


def main() -> None:
    """Measure everything, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=None)
    output = parser.parse_args().output
    load_before = load()
    results = []
    print(f"{'C':>5} {'m':>5} {'K':>5}  {'what':<18}{'ms':>12}{'of plain':>10}{'peak MB':>9}")
    for size in SIZES:
        seen, _ = observation(*size)
        attacks = labelleak.list_attacks().items()
        names = [*BASELINES, PINV, *(name for name, attack in attacks if not attack.missing(seen))]
        plain = None
        for name in names:
            row = in_own_process(measure, size, name)
            plain = plain or row["seconds"]
            classes, features, batch = size
            results.append(
                {"classes": classes, "features": features, "batch_size": batch, "name": name, **row}
            )
            print(
                f"{classes:>5} {features:>5} {batch:>5}  {name:<18}{1e3 * row['seconds']:>12.2f}"
                f"{row['seconds'] / plain:>10.3f}{row['peak_bytes'] / 1e6:>9.1f}"
                + ("  refused" if row["refused"] else ""),
                flush=True,
            )
    write(output, __doc__, load_before, threads=torch.get_num_threads(), results=results)


if __name__ == "__main__":
    main()
