"""What exact restoration finds and certifies, and how long it takes; false certificates above all.

    python benchmarks/exact.py [--batches 50] [--data-dir DIR] [--output FILE]

Heads: FCN-3 on MNIST, untrained and after 1000 steps, and networks of 100 classes (pairs of
Fashion-MNIST images side by side) behind a ReLU and behind a global average pooling, each trained
here. Every batch of the defended settings is defended by Gaussian noise, sparsification,
quantisation, clipping or signs in turn. Time is the processor's, in one thread.
"""

import argparse
import json
import platform
import statistics
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import labelleak
from labelleak import defenses
from labelleak.data import load
from labelleak.models import build

POOL = 5000
# Below this, 1 - p of the label is rounding error in single precision.
INVISIBLE = 1e-6


class Pooled(nn.Module):
    """A small convolutional network whose embeddings are averages: without zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for inputs, outputs in ((1, 32), (32, 64), (64, 256)):
            self.features.append(nn.Conv2d(inputs, outputs, 3, 2, 1))
            self.features.append(nn.BatchNorm2d(outputs))
            self.features.append(nn.ReLU())
        self.features.append(nn.AdaptiveAvgPool2d(1))
        self.features.append(nn.Flatten())
        self.fc = nn.Linear(256, 100)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.features(images))
        return logits


def pairs(data_dir: str | None) -> tuple[Tensor, Tensor]:
    """Images of two garments side by side, and which of 100 pairs of classes they are."""
    images, labels = load("fashion-mnist", data_dir=data_dir).batch(torch.arange(20_000))
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randint(20_000, (2, 20_000), generator=generator)
    return torch.cat([images[one], images[two]], dim=3), labels[one] * 10 + labels[two]


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The network after so many steps of SGD on batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step > 0.7 * steps:
            optimizer.param_groups[0]["lr"] = 0.01
        chosen = torch.randint(len(inputs), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def weakest(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Least 1 - p of a label in the batch, without cancellation."""
    with torch.no_grad():
        logits = model(inputs).double().scatter(1, labels[:, None], -torch.inf)
        own = model(inputs).double().gather(1, labels[:, None])[:, 0]
    return float(torch.sigmoid(logits.logsumexp(dim=1) - own).min())


def defended(seen: labelleak.Observation, number: int) -> labelleak.Observation:
    """The gradient as one of the defences leaves it, stronger and weaker ones in turn."""
    generator = torch.Generator().manual_seed(number)
    size = float(seen.gradient.weight.square().mean().sqrt())
    ways: list[defenses.Defense] = [
        partial(defenses.gaussian_noise, std=1e-5 * size, generator=generator),
        partial(defenses.gaussian_noise, std=1e-2 * size, generator=generator),
        partial(defenses.sparsify, percent=10.0),
        partial(defenses.quantize, bits=8, generator=generator),
        partial(defenses.clip_norm, max_norm=0.1),
        defenses.sign,
    ]
    return defenses.defend(seen, ways[number % len(ways)])


def measure(
    model: nn.Module, pool: tuple[Tensor, Tensor], size: int, batches: int, *, defend: bool
) -> dict[str, Any]:
    """Figures over the batches of one setting."""
    inputs, labels = pool
    totals: Counter[str] = Counter()
    seconds, accuracy, lnacc = [], [], []
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(min(POOL, len(labels)), (size,), generator=generator)
        seen = labelleak.capture(model, inputs[chosen], labels[chosen])
        seen = defended(seen, number) if defend else seen
        truth = torch.bincount(labels[chosen], minlength=seen.classes)
        visible = weakest(model, inputs[chosen], labels[chosen]) > INVISIBLE
        totals["visible"] += visible
        start = time.process_time()
        try:
            found = labelleak.restore(seen, "exact", time_limit=10.0 if defend else 60.0)
        except labelleak.MissingKnowledge:
            totals["refused"] += 1
            continue
        finally:
            seconds.append(time.process_time() - start)
        right = found.counts is not None and torch.equal(found.counts, truth)
        totals["certified"] += found.certified
        totals["certified_visible"] += found.certified and visible
        totals["exact_visible"] += right and visible
        totals["false_certificates"] += found.certified and not right
        if found.counts is not None:
            scored = labelleak.score(found, truth)
            accuracy.append(scored.accuracy or 0.0)
            lnacc.append(scored.lnacc or 0.0)
    keys = ("visible", "certified", "certified_visible", "exact_visible", "false_certificates")
    return {
        "batches": batches,
        **{key: totals[key] for key in (*keys, "refused")},
        "accuracy": statistics.fmean(accuracy) if accuracy else None,
        "lnacc": statistics.fmean(lnacc) if lnacc else None,
        "seconds_median": statistics.median(seconds),
        "seconds_most": max(seconds),
    }


def main() -> None:
    """Train, measure every setting, print a line each, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = load("mnist", data_dir=given.data_dir)
    mnist = digits.batch(torch.arange(len(digits)))
    garments = pairs(given.data_dir)
    fcn = partial(build, "fcn-3", seed=0)
    small: dict[str, Any] = {"classes": 10, "image_shape": (1, 28, 28)}
    wide: dict[str, Any] = {"classes": 100, "image_shape": (1, 28, 56)}
    torch.manual_seed(0)
    networks = {
        "fcn-3, mnist, untrained": (fcn(**small).eval(), mnist, (4, 8)),
        "fcn-3, mnist, 1000 steps": (trained(fcn(**small), *mnist, 1000), mnist, (4, 8)),
        "fcn-3, 100 classes, 2000 steps": (
            trained(fcn(**wide), *garments, 2000),
            garments,
            (8, 24),
        ),
        "pooled, 100 classes, 1000 steps": (trained(Pooled(), *garments, 1000), garments, (8, 24)),
    }
    results = []
    for name, (model, pool, sizes) in networks.items():
        for size in sizes:
            for defend in (False, True):
                row = measure(model, pool, size, given.batches, defend=defend)
                results.append({"network": name, "batch_size": size, "defended": defend, **row})
                print(json.dumps(results[-1]), flush=True)
    content = {
        "schema": "labelleak/benchmark/1",
        "what": __doc__,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "labelleak": labelleak.__version__,
        },
        "results": results,
    }
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
