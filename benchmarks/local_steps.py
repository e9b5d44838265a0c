"""Accuracy of the counts after local steps on trained networks: `likelihood` beside RLU and iLRG.

    python benchmarks/local_steps.py [--data-dir DIR] [--output results/benchmark-local-steps.json]

Networks are trained here, on the training split. Clients and the server's auxiliary data are drawn
from the test split, no sample to both. The file is written after every row.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import labelleak
from labelleak.federated import train_locally
from labelleak.lab.datasets import load as load_data
from labelleak.lab.datasets.samplers import draw
from labelleak.lab.networks import build
from labelleak.projection import project_to_counts
from measuring import Row, load, write

ATTACKS = ("likelihood", "rlu", "ilrg")
# The first seed of the batches: the attack's constants were chosen on lower seeds.
FIRST_SEED = 10_000


@dataclass(frozen=True)
class Network:
    """A network and how long it is trained (batches of 64, learning rate 0.05, momentum 0.9)."""

    name: str
    data: str
    iterations: int


@dataclass(frozen=True)
class Setting:
    """Local training of one client."""

    network: Network
    sampler: str
    auxiliary: int = 500
    batch_size: int = 64
    batches: int = 10
    learning_rate: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)


FCN = Network("fcn-3", "mnist", 1000)
LENET = Network("lenet5", "fashion-mnist", 1000)
HUNDRED = Network("lenet5", "tiny-imagenet-100", 800)
SETTINGS = (
    Setting(LENET, "random"),
    Setting(LENET, "dirichlet"),
    Setting(FCN, "random"),
    Setting(FCN, "dirichlet"),
    Setting(LENET, "balanced"),
    Setting(FCN, "balanced"),
    Setting(LENET, "dirichlet", auxiliary=100),
    Setting(LENET, "dirichlet", learning_rate=0.1),
    Setting(LENET, "dirichlet", batches=5, options={"epochs": 2}),
    Setting(LENET, "dirichlet", options={"proximal": 0.1}),
    Setting(LENET, "dirichlet", learning_rate=0.01, options={"momentum": 0.9}),
    Setting(HUNDRED, "random", auxiliary=20),
)


@cache
def samples(data: str, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """The whole test split."""
    dataset = load_data(data, split="test", data_dir=data_dir)
    images, labels = dataset.batch(torch.arange(len(dataset)))
    return images, labels


@cache
def trained(network: Network, data_dir: Path | None) -> tuple[nn.Module, float]:
    """The trained network, in evaluation mode, and its accuracy on the test split."""
    dataset = load_data(network.data, split="train", data_dir=data_dir)
    torch.manual_seed(0)
    model = build(network.name, classes=dataset.classes, image_shape=dataset.image_shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loss = nn.CrossEntropyLoss()
    random = torch.Generator().manual_seed(0)
    for _ in range(network.iterations):
        images, labels = dataset.batch(torch.randint(len(dataset), (64,), generator=random))
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    model.eval()
    images, labels = samples(network.data, data_dir)
    with torch.no_grad():
        chunks = torch.arange(len(labels)).tensor_split(20)
        right = torch.cat([model(images[chunk]).argmax(dim=1) for chunk in chunks]) == labels
    return model, float(right.double().mean())


def divided(labels: Tensor, auxiliary: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a number of samples of each class, and of all others."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[rank < auxiliary], order[rank >= auxiliary]


def measured(data_dir: Path | None, setting: Setting, trials: int) -> Row:
    """Mean accuracy of every attack over the same clients."""
    model, right = trained(setting.network, data_dir)
    images, labels = samples(setting.network.data, data_dir)
    accuracies: dict[str, list[float]] = {name: [] for name in (*ATTACKS, "all classes alike")}
    seconds: dict[str, list[float]] = {name: [] for name in ATTACKS}
    size = setting.batch_size * setting.batches
    for seed in range(FIRST_SEED, FIRST_SEED + trials):
        server, others = divided(labels, setting.auxiliary, seed)
        own = others[draw(setting.sampler, labels[others], size, seed)]
        update = train_locally(
            model,
            images[own],
            labels[own],
            labelleak.LocalTraining(
                learning_rate=setting.learning_rate,
                batch_size=setting.batch_size,
                **setting.options,
            ),
            classes=int(labels.max()) + 1,
            seed=seed,
        )
        auxiliary = labelleak.Auxiliary(images[server], labels[server])
        seen = update.observe(model, auxiliary=auxiliary)
        for name in ATTACKS:
            start = time.process_time()
            found = labelleak.restore(seen, name)
            seconds[name].append(time.process_time() - start)
            accuracies[name].append(labelleak.score(found, update.true_counts).accuracy or 0.0)
        alike = project_to_counts(torch.zeros(seen.classes), size)
        together = torch.minimum(alike, update.true_counts).sum()
        accuracies["all classes alike"].append(float(together) / size)
    spread = {name: statistics.stdev(values) / trials**0.5 for name, values in accuracies.items()}
    return {
        "network": f"{setting.network.name}, {setting.network.data}",
        "iterations": setting.network.iterations,
        "test_accuracy": round(right, 3),
        "sampler": setting.sampler,
        "auxiliary_per_class": setting.auxiliary,
        "batch_size": setting.batch_size,
        "batches": setting.batches,
        "learning_rate": setting.learning_rate,
        **setting.options,
        "accuracy": {name: round(statistics.fmean(v), 3) for name, v in accuracies.items()},
        "standard_error": {name: round(value, 3) for name, value in spread.items()},
        "cpu_seconds": {name: round(statistics.median(v), 2) for name, v in seconds.items()},
    }


def main() -> None:
    """Measure, print and write row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before = load()
    rows: list[Row] = []
    for setting in SETTINGS:
        rows.append(measured(given.data_dir, setting, given.trials))
        print(rows[-1], flush=True)
        write(given.output, __doc__, before, 1, trials=given.trials, rows=rows)


if __name__ == "__main__":
    main()
