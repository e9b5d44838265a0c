"""Time and memory of `pooled` on a language model's head, against a sum over both matrices.

    python benchmarks/pooled.py [--classes 128000] [--features 4096]

Needs 8 bytes of memory per entry of the head, and about 1 GB (Linux only).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import labelleak
from labelleak.attacks.pooled import pooled


def observation(classes: int, features: int, batch: int = 64) -> labelleak.Observation:
    """An untrained head, and the gradient of a batch whose embeddings resemble each other."""
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
    return labelleak.Observation(head, gradient, batch_size=batch)


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Median wall time of several calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, default=128_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    seen = observation(given.classes, given.features)
    pooled(observation(64, 32))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    attack = median_seconds(lambda: pooled(seen), given.runs)
    above = resident("VmHWM") - before
    read = median_seconds(lambda: (seen.head.weight.sum(), seen.gradient.weight.sum()), given.runs)
    print(f"{torch.get_num_threads()} threads, {given.classes} classes, {given.features} features")
    print(f"sum over both matrices {read:.2f} s; pooled {attack:.2f} s, {attack / read:.2f} times")
    print(f"memory above the inputs {above / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
