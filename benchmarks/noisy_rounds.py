"""Labels that several noisy rounds tell together, beside the epsilon that the rounds add up to.

    python benchmarks/noisy_rounds.py [--data-dir DIR] [--output FILE] [--figure FILE]

A federation of ten clients trains a network with one hidden layer of 32 on digits. Every client has
640 samples, their classes uneven (Dirichlet, 0.3), and sends in each of 16 rounds the gradient of
all of them, as DP-SGD releases it: each sample's clipped to length 16, and Gaussian noise added to
their sum. The server steps by the mean of what it gets. `pooled` restores each round, and `combine`
all rounds so far, where the standard error of a count is that of the noise, which the server knows.
Epsilon is that of all the rounds so far for one sample, by the RDP accountant of Opacus: every
sample is in every round. `--figure` draws what the output file holds, and measures what it lacks.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from opacus.accountants import RDPAccountant
from torch import Tensor, nn

import labelleak
from labelleak.guess import best_guess
from labelleak.lab.datasets import load as load_data
from labelleak.lab.ranges import RANGES, Range
from labelleak.metrics import accuracy, counts_of
from measuring import Row, load, write

CLASSES, SAMPLES, CLIENTS, ROUNDS, CONCENTRATION = 10, 640, 10, 16, 0.3
HIDDEN = 32
NOISES = (1.0, 2.0, 4.0, 8.0)
CLIP, RATE, DELTA = 16.0, 0.1, 1e-5
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def held_by(client: int, data_dir: Path | None, own: Range) -> tuple[Tensor, Tensor]:
    """Images and labels of a client."""
    digits = load_data("mnist", split="train", data_dir=data_dir)
    source = np.random.default_rng(own.derive("noisy rounds", "data", client))
    counts = source.multinomial(SAMPLES, source.dirichlet([CONCENTRATION] * CLASSES))
    pool = torch.as_tensor(own.samples(digits.labels))
    chosen = [
        source.choice(pool[digits.labels[pool] == label].numpy(), number, replace=False)
        for label, number in enumerate(counts)
    ]
    return digits.batch(torch.from_numpy(np.concatenate(chosen)))


def released(
    model: nn.Sequential, images: Tensor, labels: Tensor, noise: float, source: torch.Generator
) -> dict[str, Tensor]:
    """The gradient of a client's samples as DP-SGD releases it, divided by their number."""
    first, last = model[1], model[3]
    inputs = images.flatten(1)
    before = first(inputs)
    hidden = before.relu()
    logits = last(hidden)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    # A sample's gradient of a layer is the product of what enters it and the loss's derivative.
    derivatives = torch.autograd.grad(losses.sum(), (before, logits), retain_graph=True)
    squares = [
        derivative.square().sum(dim=1) * (entering.square().sum(dim=1) + 1)
        for derivative, entering in zip(derivatives, (inputs, hidden.detach()), strict=True)
    ]
    factors = (CLIP / torch.stack(squares).sum(dim=0).sqrt()).clamp_max(1.0)
    names, values = zip(*model.named_parameters(), strict=True)
    clipped = torch.autograd.grad((factors * losses).sum(), values)
    return {
        name: (value + noise * CLIP * torch.randn(value.shape, generator=source)) / len(labels)
        for name, value in zip(names, clipped, strict=True)
    }


def epsilon(noise: float, rounds: int) -> float:
    """What so many rounds add up to."""
    accountant = RDPAccountant()
    accountant.history = [(noise, 1.0, rounds)]
    return float(accountant.get_epsilon(DELTA))


def federation(noise: float, data_dir: Path | None, own: Range) -> list[Row]:
    """Means over the clients after each round."""
    torch.manual_seed(own.derive("noisy rounds", "network"))
    layers = (nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    model = nn.Sequential(*layers)
    clients = [held_by(client, data_dir, own) for client in range(CLIENTS)]
    true = [counts_of(labels, CLASSES) for _, labels in clients]
    source = torch.Generator().manual_seed(own.derive("noisy rounds", "noise", str(noise)))
    told: list[list[labelleak.Restoration]] = [[] for _ in clients]
    rows = []
    for number in range(1, ROUNDS + 1):
        sent = [released(model, *data, noise, source) for data in clients]
        for so_far, gradients in zip(told, sent, strict=True):
            seen = labelleak.observe(model, gradients, batch_size=SAMPLES)
            found = labelleak.restore(seen, "pooled")
            assert found.raw is not None, "of an attack that counts"
            # The noise of a count is that of the bias's gradient times the number of samples.
            errors = torch.full_like(found.raw, noise * CLIP)
            so_far.append(replace(found, standard_errors=errors))
        alone = [right(one[-1], counts) for one, counts in zip(told, true, strict=True)]
        together = [labelleak.combine(one) for one in told]
        known = [right(one, counts) for one, counts in zip(together, true, strict=True)]
        spread = statistics.stdev(known) / len(known) ** 0.5
        rows.append(
            {
                "noise_multiplier": noise,
                "round": number,
                "epsilon": round(epsilon(noise, number), 3),
                "alone": round(statistics.fmean(alone), 4),
                "combined": round(statistics.fmean(known), 4),
                "standard_error": round(spread, 4),
            }
        )
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.sub_(RATE * torch.stack([one[name] for one in sent]).mean(dim=0))
    return rows


def right(found: labelleak.Restoration, true: Tensor) -> float:
    """Share of the labels that are right."""
    assert found.counts is not None, "of an attack that counts"
    return accuracy(found.counts, true)


def guess(data_dir: Path | None, own: Range) -> float:
    """Accuracy of the best guess without any update, mean over the clients."""
    guessed = best_guess(SAMPLES, CLASSES)
    clients = [held_by(client, data_dir, own)[1] for client in range(CLIENTS)]
    return statistics.fmean(guessed.accuracy(counts_of(labels, CLASSES)) for labels in clients)


def draw(record: Row, target: Path) -> None:
    """Share of the labels against epsilon: a line for each noise, a point for each round."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for noise, color in zip(NOISES, COLORS, strict=True):
        rows = [row for row in record["rows"] if row["noise_multiplier"] == noise]
        epsilons, shares = ([row[key] for row in rows] for key in ("epsilon", "combined"))
        label = f"noise multiplier {noise:g}"
        axes.plot(epsilons, shares, marker="o", markersize=3, color=color, label=label)
        axes.plot(epsilons[:1], shares[:1], marker="o", markersize=8, color=color)
    axes.axhline(record["guess"], color="#767676", linestyle=":", label="best guess, no update")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"epsilon of all rounds so far (delta {DELTA:g})")
    axes.set_ylabel("labels restored, all rounds so far")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=120)


def main() -> None:
    """Measure what is missing, print and write noise by noise, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--range", choices=[*RANGES], default="evaluation")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    own, before = RANGES[given.range], load()
    record: Row = {"range": given.range, "rows": []}
    if given.output is not None and given.output.exists():
        record["rows"] = json.loads(given.output.read_text())["rows"]
    record["guess"] = round(guess(given.data_dir, own), 4)
    known = {row["noise_multiplier"] for row in record["rows"]}
    for noise in NOISES:
        if noise not in known:
            record["rows"] += federation(noise, given.data_dir, own)
            print(record["rows"][-ROUNDS], record["rows"][-1], flush=True)
            write(given.output, __doc__, before, 1, **record)
    if given.figure is not None:
        draw(record, given.figure)


if __name__ == "__main__":
    main()
