"""Classifiers of few classes whose whole update is at hand: what `exact` finds in a layer and head.

    python benchmarks/poolers.py [--batches 10] [--data-dir DIR] [--development] [--output FILE]

Networks of two classes: a ReLU layer of 128 on MNIST (odd or even), and heads as of transformers
on made-up hidden states of width 768 in two overlapping normal classes: a tanh layer of 768 (BERT's
pooler), the same by a function that no module names (RoBERTa), and a GELU layer of 384; each
untrained and after 300 steps of SGD. Every batch has a network of its own. Seeds and images are of
the evaluation range, or with --development of the other. Gradients are autograd's, in single
precision. Time is the processor's, in one thread.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import labelleak
from labelleak.lab.datasets import load as load_data
from labelleak.lab.ranges import DEVELOPMENT, EVALUATION, Range
from made_up_layers import Pooled
from measuring import load, write

SIZES, STEPS, LIMIT = (4, 8, 12, 16), (0, 300), 10.0
HIDDEN = 768
# Below this, 1 - p of the label is rounding error in single precision.
INVISIBLE = 1e-6

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


class Kind(NamedTuple):
    """A network to make, and whether its inputs are images."""

    make: Callable[[], nn.Module]
    is_of_images: bool


def named(inputs: int, width: int, activation: nn.Module) -> nn.Module:
    """A layer, an activation, a dropout and a head of two classes."""
    return nn.Sequential(nn.Linear(inputs, width), activation, nn.Dropout(0.1), nn.Linear(width, 2))


KINDS = {
    "ReLU layer 784-128, MNIST": Kind(lambda: named(784, 128, nn.ReLU()), True),
    "tanh pooler 768-768": Kind(lambda: named(HIDDEN, HIDDEN, nn.Tanh()), False),
    "tanh pooler 768-768, not named": Kind(
        lambda: Pooled(torch.tanh, nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2)), False
    ),
    "GELU layer 768-384": Kind(lambda: named(HIDDEN, 384, nn.GELU()), False),
}


def hidden_states(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """States of two classes, 1.5 standard deviations on either side of a plane."""
    labels = torch.randint(2, (number,), generator=generator)
    states = torch.randn(number, HIDDEN, generator=generator)
    states[:, 0] += 3.0 * labels - 1.5
    return states, labels


def digits(data_dir: str | None, part: Range) -> Draw:
    """Draws images of MNIST with the label 1 if the digit is odd."""
    data = load_data("mnist", data_dir=data_dir)
    images, classes = data.batch(torch.arange(len(data)))
    own = part.samples(classes)

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = own[torch.randint(len(own), (number,), generator=generator)]
        return images[chosen].flatten(1), classes[chosen] % 2

    return draw


def train(model: nn.Module, draw: Draw, steps: int, generator: torch.Generator) -> nn.Module:
    """The network after a number of steps of SGD on batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        inputs, labels = draw(64, generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def restore_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
    """What `exact` finds in one batch, and how long it takes."""
    logits = model(inputs)
    gradients = torch.autograd.grad(
        functional.cross_entropy(logits, labels), list(model.parameters())
    )
    names = [name for name, _ in model.named_parameters()]
    seen = labelleak.observe(
        model, dict(zip(names, gradients, strict=True)), batch_size=len(labels)
    )
    # Of two classes, 1 - p of the label is the p of the other.
    weakest = float(torch.softmax(logits.detach(), dim=1).gather(1, 1 - labels[:, None]).min())
    row = {"visible": weakest > INVISIBLE, "certified": False, "right": False, "refused": False}
    start = time.process_time()
    try:
        found = labelleak.restore(seen, "exact", time_limit=LIMIT)
    except labelleak.MissingKnowledge:
        row["refused"] = True
    else:
        truth = torch.bincount(labels, minlength=2)
        row["certified"] = found.certified
        row["right"] = found.counts is not None and torch.equal(found.counts, truth)
    return row | {"seconds": time.process_time() - start}


def measure(name: str, kind: Kind, draw: Draw, part: Range, batches: int) -> list[dict[str, Any]]:
    """Figures of one kind of network, by steps of training and batch size."""
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number in range(batches):
        for steps in STEPS:
            torch.manual_seed(part.numbered(number))
            generator = torch.Generator().manual_seed(part.numbered(batches + number))
            model = train(kind.make(), draw, steps, generator)
            for size in SIZES:
                found = restore_one(model, *draw(size, generator))
                rows.setdefault((steps, size), []).append(found)
    return [
        {"network": name, "steps": steps, "batch_size": size} | summary(of_setting)
        for (steps, size), of_setting in rows.items()
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures over the batches of one setting."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update({key: int(row[key]) for key in ("visible", "certified", "right", "refused")})
        totals["certified_visible"] += row["certified"] and row["visible"]
        totals["false_certificates"] += row["certified"] and not row["right"]
    seconds = [row["seconds"] for row in rows]
    keys = ("visible", "certified", "certified_visible", "right", "refused", "false_certificates")
    return {
        "batches": len(rows),
        **{key: totals[key] for key in keys},
        "seconds_median": statistics.median(seconds),
        "seconds_most": max(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--data-dir")
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = load()
    part = DEVELOPMENT if options.development else EVALUATION
    images = digits(options.data_dir, part)
    results = []
    for name, kind in KINDS.items():
        draw = images if kind.is_of_images else hidden_states
        for row in measure(name, kind, draw, part, options.batches):
            results.append(row)
            print(row, flush=True)
    write(options.output, __doc__, load_before, 1, range=part.name, results=results)


if __name__ == "__main__":
    main()
