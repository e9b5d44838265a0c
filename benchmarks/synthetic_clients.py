"""Accuracy of `synthetic`, without samples, beside `auto` without any and RLU with 200 a class.

    python benchmarks/synthetic_clients.py [--data-dir DIR] [--output FILE]

Settings, clients and rounds are those of `virtual_clients.py`. The clients of a row share model and
recipe, so they share virtual clients: the first trains 240, each other adds 48. A client that the
output file has already is not measured again, and the file is written after every client.
"""

import statistics
import time
from typing import Any

from torch import Tensor, nn

import labelleak
from labelleak.attacks.virtual import MadeUpClients
from measuring import Row
from virtual_clients import SETTINGS, Federation, Setting, covered, measure

ATTACKS = ("synthetic", "auto", "rlu")
ROWS = (
    "quick start, round 1",
    "five epochs, round 1",
    "quick start, round 3",
    "five epochs, round 2",
    "quick start, round 9",
    "Adam, untrained",
)


def one_client(
    federation: Federation,
    model: nn.Module,
    server: tuple[Tensor, Tensor],
    client: int,
    shared: MadeUpClients,
    row: Row,
) -> None:
    """The attack, and those beside it, on one client."""
    update = federation.train(model, "attacked", client)
    alone, known = update.observe(model), len(shared.rows)
    helped = update.observe(model, auxiliary=labelleak.Auxiliary(*server))
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


def summary(setting: Setting, right: float, clients: list[Row]) -> Row:
    """Means over the clients."""

    def mean(what: str, attack: str) -> float | None:
        values = [one[what][attack] for one in clients]
        return None if None in values else round(statistics.fmean(values), 3)

    spread = [one["accuracy"]["synthetic"] for one in clients]
    return {
        "name": setting.name,
        "test_accuracy": round(right, 3),
        "clients": len(clients),
        "accuracy": {attack: mean("accuracy", attack) for attack in ATTACKS},
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


if __name__ == "__main__":
    chosen = [setting for setting in SETTINGS if setting.name in ROWS]
    measure(__doc__, chosen, ATTACKS, MadeUpClients, one_client, summary)
