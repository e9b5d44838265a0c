"""Accuracy of `synthetic`, without samples, beside `auto` without any and RLU with 200 a class.

    python benchmarks/synthetic_clients.py [--data-dir DIR] [--output FILE]

Settings, clients and rounds are those of `virtual_clients.py`. The clients of a row share model and
recipe, so they share virtual clients: the first trains 240, each other adds 48. A client that the
output file has already is not measured again, and the file is written after every client.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import labelleak
from labelleak.attacks.virtual import MadeUpClients
from labelleak.lab.ranges import RANGES
from measuring import Row, load, write
from virtual_clients import SETTINGS, Federation, covered, first_of_each, split

ROWS = ("quick start, round 1", "five epochs, round 1", "quick start, round 3", "Adam, untrained")


def one_client(
    federation: Federation,
    model: nn.Module,
    server: labelleak.Auxiliary,
    client: int,
    shared: MadeUpClients,
) -> Row:
    """The attack, and those beside it, on one client."""
    update = federation.train(model, "attacked", client)
    alone, known = update.observe(model), len(shared.rows)
    helped = update.observe(model, auxiliary=server)
    row: Row = {"accuracy": {}, "coverage": {}, "seconds": {}}
    for name, seen, more in (
        ("synthetic", alone, {"shared": shared, "time_limit": 1e9}),
        ("auto", alone, {}),
        ("rlu", helped, {}),
    ):
        start = time.process_time()
        options: dict[str, Any] = more
        found = labelleak.restore(seen, name, **options)
        row["seconds"][name] = round(time.process_time() - start, 1)
        row["accuracy"][name] = labelleak.score(found, update.true_counts).accuracy
        row["coverage"][name] = covered(found, update.true_counts)
        if name == "synthetic":
            assert found.raw is not None
            assert found.standard_errors is not None
            off = (found.raw - update.true_counts) / found.standard_errors
            row["errors_in_standard_errors"] = round(float(off.square().mean().sqrt()), 3)
            row["flags"] = [flag.name.lower() for flag in found.flags]
    row["trainings"] = len(shared.rows) - known
    return row


def summary(name: str, right: float, clients: list[Row]) -> Row:
    """Means over the clients."""

    def mean(what: str, attack: str) -> float | None:
        values = [one[what][attack] for one in clients]
        return None if None in values else round(statistics.fmean(values), 3)

    spread = [one["accuracy"]["synthetic"] for one in clients]
    return {
        "name": name,
        "test_accuracy": round(right, 3),
        "clients": len(clients),
        "accuracy": {attack: mean("accuracy", attack) for attack in ("synthetic", "auto", "rlu")},
        "standard_error": round(statistics.stdev(spread) / len(spread) ** 0.5, 4)
        if len(spread) > 1
        else None,
        "coverage": mean("coverage", "synthetic"),
        "seconds": mean("seconds", "synthetic"),
        "errors_in_standard_errors": round(
            statistics.fmean(one["errors_in_standard_errors"] ** 2 for one in clients) ** 0.5, 2
        ),
        "trainings": round(statistics.fmean(one["trainings"] for one in clients), 1),
        "each": clients,
    }


def main() -> None:
    """Measure, print and write client by client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--range", choices=[*RANGES], default="evaluation")
    parser.add_argument("--only", help="rows whose name has this in it")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    own, before = RANGES[given.range], load()
    rows: list[Row] = []
    if given.output is not None and given.output.exists():
        rows = json.loads(given.output.read_text())["rows"]
    for setting in (one for one in SETTINGS if one.name in ROWS):
        if given.only is not None and given.only not in setting.name:
            continue
        place = next((i for i, row in enumerate(rows) if row["name"] == setting.name), len(rows))
        clients: list[Row] = rows[place]["each"] if place < len(rows) else []
        if len(clients) >= given.clients:
            continue
        federation, shared = Federation(setting, given.data_dir, own), MadeUpClients()
        model = federation.model()
        images, labels = split("test", given.data_dir, own)
        held = first_of_each(labels, setting.auxiliary)
        server = labelleak.Auxiliary(images[held], labels[held])
        with torch.no_grad():
            right = float((model(images).argmax(dim=1) == labels).double().mean())
        for client in range(len(clients), given.clients):
            clients.append(one_client(federation, model, server, client, shared))
            rows[place : place + 1] = [summary(setting.name, right, clients)]
            write(given.output, __doc__, before, 1, range=given.range, rows=rows)
        print({key: value for key, value in rows[place].items() if key != "each"}, flush=True)


if __name__ == "__main__":
    main()
