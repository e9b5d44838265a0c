"""What rounds of a federation tell together of one client's labels, beside each round alone.

    python benchmarks/rounds.py [--data-dir DIR] [--output FILE]

A federation of ten clients of 640 samples of Fashion-MNIST, their classes uneven (Dirichlet, 0.3),
trains the CNN of Flower's quick start (FedAvg, one epoch of SGD on batches of 32). Every client has
the same samples in every round, in another order. The server has 200 samples of each class. Clients
of a round share virtual clients: the first trains up to 60, each other adds up to 24. What is
restored of a client in a round is kept, so that the combination can be computed anew; the file is
written after every one, and a run goes on where the last one stopped.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

import labelleak
from labelleak import Restoration, combine, score
from labelleak.attacks.virtual import Simulations
from labelleak.federated import train_locally
from labelleak.federated.local_training import LocalUpdate
from labelleak.lab.ranges import RANGES, Range
from labelleak.projection import project_to_counts
from measuring import Row, load, write
from virtual_clients import (
    BATCH,
    CLASSES,
    CLIENTS,
    MOST,
    QUICK_START,
    SAMPLES,
    QuickStart,
    covered,
    first_of_each,
    split,
    uneven,
)

AUXILIARY, OTHERS = 200, 24


class Federation:
    """Ten clients with data of their own, and the model that they are handed in every round."""

    def __init__(self, data_dir: Path | None, own: Range) -> None:
        self.range = own
        self.images, self.labels = split("train", data_dir, own)
        self.recipe = labelleak.LocalTraining(batch_size=BATCH, **QUICK_START)
        torch.manual_seed(own.derive("rounds", "network"))
        self.model: nn.Module = QuickStart()

    def train(self, round_number: int, client: int) -> LocalUpdate:
        """A client's update in the round that the federation is in."""
        held = uneven(self.labels, self.range.derive("rounds", "data", client))
        seed = self.range.derive("rounds", "order", round_number, client)
        images, labels = self.images[held], self.labels[held]
        return train_locally(self.model, images, labels, self.recipe, classes=CLASSES, seed=seed)

    def go_on(self, round_number: int) -> None:
        """Average the clients' weights: the next round's model."""
        sent = [self.train(round_number, client).after for client in range(CLIENTS)]
        mean = {name: torch.stack([one[name] for one in sent]).mean(dim=0) for name in sent[0]}
        self.model.load_state_dict(mean)


def one_audit(
    federation: Federation,
    number: int,
    client: int,
    server: tuple[Tensor, Tensor],
    shared: Simulations,
) -> Row:
    """What is restored of one client in one round."""
    update = federation.train(number, client)
    seen = update.observe(federation.model, auxiliary=labelleak.Auxiliary(*server))
    trainings = OTHERS if shared.pools else MOST
    found = labelleak.restore(seen, "virtual", shared=shared, trainings=trainings)
    other = labelleak.restore(seen, "likelihood")
    assert found.raw is not None
    assert found.standard_errors is not None
    assert other.counts is not None
    return {
        "round": number,
        "client": client,
        "true": update.true_counts.tolist(),
        "raw": [round(value, 3) for value in found.raw.tolist()],
        "errors": [round(value, 3) for value in found.standard_errors.tolist()],
        "flags": [flag.name.lower() for flag in found.flags],
        "likelihood": other.counts.tolist(),
    }


def restored(one: Row) -> Restoration:
    """What `virtual` restored, of a kept row."""
    raw = torch.tensor(one["raw"], dtype=torch.float64)
    errors = torch.tensor(one["errors"], dtype=torch.float64)
    counts = project_to_counts(raw, SAMPLES)
    return Restoration(
        counts > 0,
        counts,
        raw=raw,
        standard_errors=errors,
        flags=tuple(flag for flag in labelleak.Flag if flag.name.lower() in one["flags"]),
        attack="virtual",
    )


def plain(values: list[Tensor]) -> Restoration:
    """The mean of all rounds, each with the same weight."""
    counts = project_to_counts(torch.stack(values).double().mean(dim=0), SAMPLES)
    return Restoration(counts > 0, counts)


def accuracy(found: Restoration, true: Tensor) -> float:
    """Share of the labels that are right."""
    right = score(found, true).accuracy
    assert right is not None, "there are counts"
    return right


def after(number: int, kept: list[Row]) -> Row:
    """Means over the clients of what is known after a round."""
    rows: list[list[Row]] = []
    for client in sorted({one["client"] for one in kept}):
        own = [one for one in kept if one["client"] == client and one["round"] <= number]
        if len(own) == number:
            rows.append(own)

    def mean(value: Callable[[list[Row], Tensor], float | None]) -> float:
        values = [value(own, torch.tensor(own[0]["true"])) for own in rows]
        return round(statistics.fmean(one for one in values if one is not None), 4)

    def together(own: list[Row]) -> Restoration:
        return combine([restored(one) for one in own])

    def estimates(own: list[Row]) -> list[Tensor]:
        return [torch.tensor(one["raw"]) for one in own]

    def likelihoods(own: list[Row]) -> list[Tensor]:
        return [torch.tensor(one["likelihood"]) for one in own]

    return {
        "round": number,
        "clients": len(rows),
        "alone": mean(lambda own, true: accuracy(restored(own[-1]), true)),
        "alone_coverage": mean(lambda own, true: covered(restored(own[-1]), true)),
        "combined": mean(lambda own, true: accuracy(together(own), true)),
        "combined_coverage": mean(lambda own, true: covered(together(own), true)),
        "plain_mean": mean(lambda own, true: accuracy(plain(estimates(own)), true)),
        "likelihood": mean(lambda own, true: accuracy(plain(likelihoods(own)[-1:]), true)),
        "likelihood_plain_mean": mean(lambda own, true: accuracy(plain(likelihoods(own)), true)),
    }


def rows_of(kept: list[Row], right: list[float]) -> list[Row]:
    """What is known after each round so far; `right` is the test accuracy before each."""
    known = {one["round"] for one in kept}
    return [
        {**after(number, kept), "test_accuracy": round(share, 3)}
        for number, share in enumerate(right, start=1)
        if number in known
    ]


def correlation(kept: list[Row]) -> Row:
    """How errors of two rounds go together, in standard errors: over all pairs, mean and most."""
    errors: dict[int, dict[int, Tensor]] = {}
    for row in kept:
        found, true = restored(row), torch.tensor(row["true"])
        assert found.raw is not None
        assert found.standard_errors is not None
        of_round = errors.setdefault(row["round"], {})
        of_round[row["client"]] = (found.raw - true) / found.standard_errors
    pairs = []
    for first, second in combinations(sorted(errors), 2):
        clients = sorted({*errors[first]} & {*errors[second]})
        one, other = (
            torch.cat([errors[at][client] for client in clients]) for at in (first, second)
        )
        pairs.append(float(torch.cosine_similarity(one, other, dim=0)))
    if not pairs:
        return {}
    return {"mean": round(statistics.fmean(pairs), 3), "largest": round(max(pairs), 3)}


def figures(of: str, kept: list[Row], right: list[float]) -> Row:
    """What the file holds."""
    rows = rows_of(kept, right)
    return {"range": of, "rows": rows, "error_correlation": correlation(kept), "kept": kept}


def main() -> None:
    """Measure, print and write client by client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--clients", type=int, default=CLIENTS, choices=range(1, CLIENTS + 1))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--range", choices=[*RANGES], default="evaluation")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    own, before = RANGES[given.range], load()
    kept: list[Row] = []
    if given.output is not None and given.output.exists():
        kept = json.loads(given.output.read_text())["kept"]
    federation = Federation(given.data_dir, own)
    images, labels = split("test", given.data_dir, own)
    held = first_of_each(labels, AUXILIARY)
    right: list[float] = []
    for number in range(1, given.rounds + 1):
        with torch.no_grad():
            right.append(float((federation.model(images).argmax(dim=1) == labels).double().mean()))
        shared = Simulations()
        for client in range(given.clients):
            if any((one["round"], one["client"]) == (number, client) for one in kept):
                continue
            server = images[held], labels[held]
            kept.append(one_audit(federation, number, client, server, shared))
            write(given.output, __doc__, before, 1, **figures(given.range, kept, right))
        print(rows_of(kept, right)[-1], flush=True)
        federation.go_on(number)
    # A change of what is made of the rounds needs no new ones.
    write(given.output, __doc__, before, 1, **figures(given.range, kept, right))


if __name__ == "__main__":
    main()
