"""Iterations per second of IG, beside the public code of its authors in the same run.

    git clone https://github.com/JonasGeiping/invertinggradients
    python benchmarks/inversion.py --public invertinggradients [--output FILE.json]

Both get the same network, batch, gradient, labels and settings: signed gradients with Adam, the box
constraint, total variation. They take turns, several rounds each, with the same number of threads;
the first round of each warms up and does not count.
"""

import argparse
import contextlib
import importlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import labelleak
from labelleak.inversion import IG, invert
from labelleak.lab.networks import build
from measuring import load, write

# Network, image shape, classes, batch size, iterations per round and core.
CASES: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "fcn-3": ((1, 28, 28), 10, 50, 200),
    "resnet18": ((3, 32, 32), 100, 16, 12),
}
TOTAL_VARIATION = 1e-4
LEARNING_RATE = 0.1


def public_reconstructor(folder: Path) -> Any:
    """The class of the public code, imported from a checkout with the least that it needs."""
    root = folder / "inversefed"
    if not (root / "reconstruction_algorithms.py").is_file():
        raise SystemExit(f"{folder} is no checkout of invertinggradients")
    package, networks = ModuleType("inversefed"), ModuleType("inversefed.nn")
    package.__path__ = [str(root)]
    # These are for local steps and Inception scores, which are not measured here.
    networks.MetaMonkey = None  # type: ignore[attr-defined]
    sys.modules |= {"inversefed": package, "inversefed.nn": networks}
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    return importlib.import_module("inversefed.reconstruction_algorithms").GradientReconstructor


class Case:
    """One network and the gradient of one batch."""

    def __init__(self, name: str, device: str) -> None:
        self.shape, classes, batch, _ = CASES[name]
        random = torch.Generator().manual_seed(0)
        model = build(name, classes=classes, image_shape=self.shape, seed=13)
        self.model = model.to(device).eval()
        inputs = torch.randn((batch, *self.shape), generator=random).to(device)
        self.labels = torch.randint(classes, (batch,), generator=random).to(device)
        loss = nn.functional.cross_entropy(self.model(inputs), self.labels)
        self.gradients = torch.autograd.grad(loss, list(self.model.parameters()))

    def ours(self, iterations: int) -> None:
        seen = labelleak.observe(self.model, self.gradients, batch_size=len(self.labels))
        invert(
            seen,
            IG(iterations, learning_rate=LEARNING_RATE, total_variation=TOTAL_VARIATION),
            image_shape=self.shape,
            mode="given",
            labels=self.labels,
        )

    def public(self, reconstructor: Any, iterations: int) -> None:
        config = {
            "signed": True,
            "boxed": True,
            "cost_fn": "sim",
            "lr": LEARNING_RATE,
            "optim": "adam",
            "restarts": 1,
            "max_iterations": iterations,
            "total_variation": TOTAL_VARIATION,
        }
        zero, one = (
            torch.full((self.shape[0], 1, 1), v, device=self.labels.device) for v in (0, 1)
        )
        machine = reconstructor(self.model, (zero, one), config, num_images=len(self.labels))
        with contextlib.redirect_stdout(io.StringIO()):
            machine.reconstruct(list(self.gradients), self.labels, img_shape=self.shape)


def rate(run: Callable[[int], None], iterations: int) -> float:
    """Iterations per second of one round."""
    synchronize()
    start = time.perf_counter()
    run(iterations)
    synchronize()
    return iterations / (time.perf_counter() - start)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure every case, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--public", type=Path, required=True, help="checkout of invertinggradients")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = load()
    reconstructor = public_reconstructor(options.public)
    results = []
    print(f"{'network':<10}{'K':>4}{'ours, it/s':>12}{'public, it/s':>14}{'ratio':>8}")
    for name in options.cases:
        shape, _, batch, iterations = CASES[name]
        if options.device == "cuda":
            iterations *= 10
        case = Case(name, options.device)
        rates: dict[str, list[float]] = {"ours": [], "public": []}
        for _ in range(options.rounds + 1):
            rates["ours"].append(rate(case.ours, iterations))
            rates["public"].append(rate(partial(case.public, reconstructor), iterations))
        ours, public = (statistics.median(rates[who][1:]) for who in ("ours", "public"))
        print(f"{name:<10}{batch:>4}{ours:>12.2f}{public:>14.2f}{ours / public:>8.2f}", flush=True)
        results.append(
            {
                "network": name,
                "image_shape": shape,
                "batch_size": batch,
                "iterations_per_round": iterations,
                "ours": ours,
                "public": public,
                "ratio": ours / public,
                "rounds": {who: values[1:] for who, values in rates.items()},
            }
        )
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    write(options.output, __doc__, before, options.threads, gpu=gpu, results=results)


if __name__ == "__main__":
    main()
