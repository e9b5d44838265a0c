"""Hold attacks of moments against the ceiling that a site computes: does one exceed it?

Each setting draws batches of its own from the development range. The ceiling is computed from the
site's samples, and the attacks run as a server would, `likelihood` and `rlu` with auxiliary data.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch

import labelleak
from labelleak.audit.ceiling import moment_ceiling
from labelleak.lab import networks
from labelleak.lab.datasets import draw
from labelleak.lab.materials import cached_dataset
from labelleak.lab.ranges import RANGES

ATTACKS = ("pooled", "calibrated", "damped", "rlu", "likelihood")
AUXILIARY_OF_A_CLASS = 100


class Setting(NamedTuple):
    """A network, how long it was trained, and the batch."""

    network: str
    data: str
    steps: int
    size: int


SETTINGS = tuple(
    Setting(network, data, steps, size)
    for network, data in (("fcn-3", "mnist"), ("lenet5", "fashion-mnist"))
    for steps in (0, 100, 1000)
    for size in (64, 256)
)


def trained(setting: Setting, data: Any, seed: int) -> torch.nn.Module:
    """The network after so many steps of SGD on the data."""
    torch.manual_seed(seed)
    model = networks.build(
        setting.network, classes=data.classes, image_shape=data.image_shape, seed=seed
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(setting.steps):
        inputs, labels = data.batch(torch.randint(len(data.labels), (64,)))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def run(setting: Setting, folder: Path, batches: int) -> dict[str, Any]:
    """Mean accuracies of one setting, and the ceiling."""
    data = cached_dataset(setting.data, "train", folder, None, "development")
    other = cached_dataset(setting.data, "test", folder, None, "development")
    seeds = [RANGES["development"].numbered(number) for number in range(batches)]
    model = trained(setting, data, seeds[0])
    places = torch.cat(
        [(other.labels == label).nonzero()[:AUXILIARY_OF_A_CLASS, 0] for label in range(10)]
    )
    auxiliary = labelleak.Auxiliary(*other.batch(places))
    reached: dict[str, list[float]] = {name: [] for name in (*ATTACKS, "guess", "ceiling")}
    for seed in seeds:
        own = draw("dirichlet", data.labels, setting.size, seed, alpha=1.0, replacement=True)
        inputs, labels = data.batch(own)
        site, site_labels = data.batch(draw("random", data.labels, 2000, seed))
        site = torch.cat([inputs, site])
        site_labels = torch.cat([labels, site_labels])
        counts = torch.bincount(labels, minlength=data.classes)
        gradients = _gradients(model, inputs, labels)
        seen = labelleak.observe(
            model, gradients, batch_size=setting.size, auxiliary=auxiliary,
            input_shape=data.image_shape,
        )  # fmt: skip
        reached["ceiling"].append(moment_ceiling(seen, counts, site, site_labels).accuracy)
        for name in ATTACKS:
            scored = labelleak.score(labelleak.restore(seen, name), counts)
            reached[name].append(scored.accuracy or 0.0)
        reached["guess"].append(scored.guess or 0.0)
    excess = {
        name: [one - top for one, top in zip(reached[name], reached["ceiling"], strict=True)]
        for name in ATTACKS
    }
    return {
        **setting._asdict(),
        "batches": batches,
        "mean": {name: statistics.fmean(values) for name, values in reached.items()},
        "excess": {
            name: {
                "mean": statistics.fmean(values),
                "error": statistics.stdev(values) / len(values) ** 0.5,
            }
            for name, values in excess.items()
        },
    }


def _gradients(
    model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


def main() -> None:
    """Run all settings, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        row = run(setting, options.data_dir, options.batches)
        rows.append(row)
        figures = "  ".join(f"{name} {value:.3f}" for name, value in row["mean"].items())
        print(*setting, figures, flush=True)
    if options.output is not None:
        content = {"schema": "labelleak/benchmark-ceiling/1", "rows": rows}
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
