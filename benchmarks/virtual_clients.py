"""Accuracy of `virtual` after local training, beside `auto`, `likelihood`, RLU and Decaf.

    python benchmarks/virtual_clients.py [--data-dir DIR] [--output FILE]

Clients hold 640 samples of Fashion-MNIST, their classes uneven (Dirichlet, 0.3), and train the CNN
of Flower's quick start on batches of 32; or images of 100 classes of Tiny-ImageNet at 32 x 32
pixels, and LeNet-5. Rounds are those of a federation of ten such clients (FedAvg). Clients' data
are drawn from the training split, the server's from the test split. The clients of a row share
model and recipe, so they share virtual clients, of which each trains up to 60, or 120 in two rows
of five epochs, side by side where torch may use several cores. What the output file has of a client
already is not measured again, and the file is written after every client.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import labelleak
from labelleak.attacks.virtual import Simulations
from labelleak.federated import train_locally
from labelleak.federated.local_training import LocalUpdate
from labelleak.lab.datasets import load as load_data
from labelleak.lab.networks import build
from labelleak.lab.ranges import RANGES, Range
from labelleak.restoration import Restoration
from measuring import Row, load, write

SAMPLES, BATCH, CLIENTS, CONCENTRATION = 640, 32, 10, 0.3
# Data of ten classes, and of a hundred.
FASHION, HUNDRED, CLASSES = "fashion-mnist", "tiny-imagenet-100", 10
# Virtual clients that a client trains at most, but for one row.
MOST = 60
# Seconds, so that no clock ends it sooner.
LONG = 3600.0
BESIDE = ("auto", "likelihood", "rlu", "decaf")


class QuickStart(nn.Module):
    """The CNN of Flower's quick start with PyTorch, for images of 28 x 28."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(16 * 4 * 4, 120), nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images, shape (images, 1, 28, 28)."""
        hidden = self.pool(torch.relu(self.conv1(images)))
        hidden = self.pool(torch.relu(self.conv2(hidden))).flatten(1)
        logits: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(hidden)))))
        return logits


@dataclass(frozen=True)
class Setting:
    """One row: a recipe, and what the network has learned before.

    Attributes:
        name: Of the row.
        recipe: Of the local training.
        round: Number of the federation's round, from 1.
        pretrained: Steps of ordinary training in place of rounds.
        auxiliary: The server's samples of each class.
        like: The row whose network and clients these are; empty for those of its own.
        data: Where samples are from.
        most: Virtual clients that a client trains at most.
    """

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    round: int = 1
    pretrained: int = 0
    auxiliary: int = 200
    like: str = ""
    data: str = FASHION
    most: int = MOST

    @property
    def classes(self) -> int:
        """Number of the data's classes."""
        return 100 if self.data == HUNDRED else CLASSES


QUICK_START: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
FIVE = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 5}
ADAM = {"optimizer": "adam", "learning_rate": 1e-3}
ONE = {"optimizer": "sgd", "learning_rate": 0.05}
SETTINGS = (
    Setting("quick start, round 1", QUICK_START),
    Setting("quick start, round 2", QUICK_START, round=2),
    Setting("five epochs, round 1", FIVE, most=120),
    Setting("quick start, round 5", QUICK_START, round=5),
    Setting("Adam, untrained", ADAM),
    Setting("quick start, round 3", QUICK_START, round=3),
    Setting("five epochs, round 2", FIVE, round=2, most=120),
    Setting("quick start, round 4", QUICK_START, round=4),
    Setting("quick start, round 9", QUICK_START, round=9),
    Setting("Adam, trained", ADAM, pretrained=400),
    Setting("one epoch, trained", ONE, pretrained=400),
    Setting("five epochs, 20 auxiliary samples a class", FIVE, auxiliary=20),
    Setting("100 classes, one epoch", ONE, auxiliary=25, data=HUNDRED),
    Setting("100 classes, five epochs", FIVE, auxiliary=25, data=HUNDRED),
    *(
        Setting(f"{row}, {number} a class", QUICK_START, round=place, auxiliary=number, like=row)
        for place, row in ((1, "quick start, round 1"), (2, "quick start, round 2"))
        for number in (5, 20, 100)
    ),
)


@cache
def split(
    name: str, data_dir: Path | None, own: Range, data: str = FASHION
) -> tuple[Tensor, Tensor]:
    """Images and labels of one split, of one range."""
    dataset = load_data(data, split=name, data_dir=data_dir)
    images, labels = dataset.batch(own.samples(dataset.labels))
    return images, labels


def uneven(labels: Tensor, seed: int, classes: int = CLASSES) -> Tensor:
    """Indices of a client's samples, without replacement within a client."""
    source = np.random.default_rng(seed)
    counts = source.multinomial(SAMPLES, source.dirichlet([CONCENTRATION] * classes))
    chosen = [
        source.choice((labels == label).nonzero()[:, 0].numpy(), number, replace=False)
        for label, number in enumerate(counts)
    ]
    return torch.from_numpy(np.concatenate(chosen))


class Federation:
    """A federation's rounds, made as they are asked for."""

    def __init__(self, setting: Setting, data_dir: Path | None, own: Range) -> None:
        self.setting, self.range = setting, own
        self.images, self.labels = split("train", data_dir, own, setting.data)
        self.recipe = labelleak.LocalTraining(batch_size=BATCH, **setting.recipe)

    def train(self, model: nn.Module, *purpose: int | str) -> LocalUpdate:
        """One client's update; the purpose names the client."""
        row = self.setting.like or self.setting.name
        seed = self.range.derive("virtual clients", row, *purpose)
        classes = self.setting.classes
        own = uneven(self.labels, seed, classes)
        images, labels = self.images[own], self.labels[own]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return train_locally(model, images, labels, self.recipe, classes=classes, seed=seed)

    def model(self) -> nn.Module:
        """The network that the server hands out in the setting's round."""
        torch.manual_seed(self.range.derive("virtual clients", "network"))
        model: nn.Module = (
            build("lenet5", classes=100, image_shape=(3, 32, 32), seed=torch.initial_seed())
            if self.setting.data == HUNDRED
            else QuickStart()
        )
        for number in range(1, self.setting.round):
            sent = [self.train(model, number, client).after for client in range(CLIENTS)]
            mean = {name: torch.stack([one[name] for one in sent]).mean(dim=0) for name in sent[0]}
            model.load_state_dict(mean)
        self._pretrain(model)
        return model

    def _pretrain(self, model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(self.setting.pretrained):
            batch = torch.randint(len(self.labels), (64,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(self.images[batch]), self.labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()


def first_of_each(labels: Tensor, number: int) -> Tensor:
    """Indices of so many samples of each class."""
    classes = range(int(labels.max()) + 1)
    return torch.cat([(labels == label).nonzero()[:number, 0] for label in classes])


def covered(found: Restoration, true: Tensor) -> float | None:
    """Share of the true counts inside the 95 % intervals; None where there are none."""
    if found.intervals is None:
        return None
    low, high = found.intervals.unbind(dim=1)
    return float(((low <= true) & (true <= high)).double().mean())


def one_client(
    federation: Federation,
    model: nn.Module,
    server: tuple[Tensor, Tensor],
    client: int,
    shared: Simulations,
    row: Row,
) -> None:
    """All attacks on one client that its row lacks."""
    update = federation.train(model, "attacked", client)
    seen = update.observe(model, auxiliary=labelleak.Auxiliary(*server))
    spoke = ""
    for name in ("virtual", *BESIDE):
        if name in row["accuracy"]:
            continue
        if name == "likelihood" and spoke == name:
            # `auto` took its answer.
            for values in (row["accuracy"], row["coverage"], row["seconds"]):
                values[name] = values["auto"]
            continue
        start = time.perf_counter()
        known = len(shared.pools)
        more: dict[str, Any] = {"shared": shared, "time_limit": LONG}
        more["trainings"] = federation.setting.most
        found = labelleak.restore(seen, name, **(more if name == "virtual" else {}))
        spoke = found.attack if name == "auto" else spoke
        row["seconds"][name] = round(time.perf_counter() - start, 1)
        row["accuracy"][name] = labelleak.score(found, update.true_counts).accuracy
        row["coverage"][name] = covered(found, update.true_counts)
        if name == "virtual":
            row["trainings"] = len(shared.pools) - known
            assert found.raw is not None
            assert found.standard_errors is not None
            off = (found.raw - update.true_counts) / found.standard_errors
            row["errors_in_standard_errors"] = round(float(off.square().mean().sqrt()), 3)
            row["flags"] = [flag.name.lower() for flag in found.flags]


def summary(setting: Setting, right: float, clients: list[Row]) -> Row:
    """Means over the clients."""

    def mean(what: str, name: str) -> float | None:
        values = [one[what].get(name) for one in clients]
        if None in values:
            return None
        return round(statistics.fmean(values), 3)

    names = ("virtual", *BESIDE)
    spread = [one["accuracy"]["virtual"] for one in clients]
    return {
        **asdict(setting),
        "test_accuracy": round(right, 3),
        "clients": len(clients),
        "accuracy": {name: mean("accuracy", name) for name in names},
        "standard_error": round(statistics.stdev(spread) / len(spread) ** 0.5, 4)
        if len(spread) > 1
        else None,
        "coverage": {name: mean("coverage", name) for name in names},
        "seconds": {name: mean("seconds", name) for name in names},
        "errors_in_standard_errors": round(
            statistics.fmean(one["errors_in_standard_errors"] ** 2 for one in clients) ** 0.5, 2
        ),
        "trainings": round(statistics.fmean(one["trainings"] for one in clients), 1),
        "each": clients,
    }


def measure(
    about: str | None,
    settings: Sequence[Setting],
    attacks: Sequence[str],
    fresh: Callable[[], Any],
    one: Callable[[Federation, nn.Module, tuple[Tensor, Tensor], int, Any, Row], None],
    summarized: Callable[[Setting, float, list[Row]], Row],
) -> None:
    """Measure, print and write client by client, as the command line says.

    Args:
        about: What the script measures, its docstring.
        settings: The rows.
        attacks: Names that a client's row has figures of when it is complete.
        fresh: Makes what the clients of a row share.
        one: Measures one client: the federation, the model, the server's samples, the client's
            number, what is shared, and the client's row, to which it adds what is missing.
        summarized: A row of its setting, the model's test accuracy and the clients.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--range", choices=[*RANGES], default="evaluation")
    parser.add_argument("--only", help="rows whose name has this in it")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    own, before = RANGES[given.range], load()
    rows: list[Row] = []
    if given.output is not None and given.output.exists():
        rows = json.loads(given.output.read_text())["rows"]
    for setting in settings:
        if given.only is not None and given.only not in setting.name:
            continue
        place = next((i for i, row in enumerate(rows) if row["name"] == setting.name), len(rows))
        clients: list[Row] = rows[place]["each"] if place < len(rows) else []
        clients += [
            {"accuracy": {}, "coverage": {}, "seconds": {}}
            for _ in range(len(clients), given.clients)
        ]
        lacking = [
            client for client, row in enumerate(clients) if not {*attacks} <= {*row["accuracy"]}
        ]
        if not lacking:
            continue
        federation, shared = Federation(setting, given.data_dir, own), fresh()
        model = federation.model()
        images, labels = split("test", given.data_dir, own, setting.data)
        held = first_of_each(labels, setting.auxiliary)
        server = images[held], labels[held]
        with torch.no_grad():
            right = float((model(images).argmax(dim=1) == labels).double().mean())
        for client in lacking:
            one(federation, model, server, client, shared, clients[client])
            measured = [row for row in clients if row["accuracy"]]
            rows[place : place + 1] = [summarized(setting, right, measured)]
            write(given.output, about, before, given.threads, range=given.range, rows=rows)
        print({key: value for key, value in rows[place].items() if key != "each"}, flush=True)


if __name__ == "__main__":
    measure(__doc__, SETTINGS, ("virtual", *BESIDE), Simulations, one_client, summary)
