"""Gradients that `labelleak.capture` makes without a backward pass, against autograd, by loss.

    python benchmarks/loss_captures.py [--output results/benchmark-loss-captures.json]

The loss of every row is written here with functions of torch alone, and differentiated in double
precision. Errors are the largest of any entry of the head's gradient, over all batches, relative to
the largest entry of the gradient; those in single precision hold the rounding of a forward pass.
Networks and batches are of the range "evaluation".
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import labelleak
from labelleak import Loss
from labelleak.lab.ranges import EVALUATION
from measuring import Row, load, write

BATCHES, SAMPLES, FEATURES, OUTPUTS, SIDE = 20, 70, 12, 5, 6
DTYPES = (torch.float32, torch.float64)
WEIGHTS = torch.linspace(0.5, 3.0, OUTPUTS, dtype=torch.float64)
IGNORED = -100

Value = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A loss, the same by torch, and what its targets are."""

    title: str
    loss: Loss
    value: Value
    targets: str = "classes"


def focal(logits: Tensor, classes: Tensor) -> Tensor:
    """With an exponent of 2 and a weight for every class (Lin et al., ICCV 2017)."""
    own = logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]
    return (WEIGHTS[classes] * (1.0 - own) ** 2 * -own.log()).mean()


def sigmoid_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """With an exponent of 2 and alpha of a quarter, as torchvision has it."""
    sure = logits.sigmoid()
    own = torch.where(targets == 1, sure, 1.0 - sure)
    weight = torch.where(targets == 1, 0.25, 0.75)
    return (weight * (1.0 - own) ** 2 * -own.log()).mean()


def masked(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that are not left out."""
    kept = targets >= 0
    return bce(logits[kept], targets[kept])


def twice(logits: Tensor, classes: Tensor) -> Tensor:
    """A softmax taken twice."""
    return functional.cross_entropy(logits.softmax(dim=1), classes)


bce = functional.binary_cross_entropy_with_logits
ce = functional.cross_entropy
CASES = (
    Case("cross-entropy", Loss(), ce),
    Case("cross-entropy, sum", Loss(reduction="sum"), lambda z, y: ce(z, y, reduction="sum")),
    Case(
        "cross-entropy, smoothing and class weights",
        Loss(label_smoothing=0.1, class_weights=WEIGHTS),
        lambda z, y: ce(z, y, WEIGHTS, label_smoothing=0.1),
    ),
    Case("cross-entropy, temperature 3", Loss(temperature=3.0), lambda z, y: ce(z / 3.0, y)),
    Case("cross-entropy, some ignored", Loss(ignore_index=IGNORED), ce, "ignored"),
    Case("cross-entropy of pixels", Loss(pixels=0), ce, "pixels"),
    Case("focal, class weights", Loss("focal", class_weights=WEIGHTS), focal),
    Case("BCE", Loss("bce"), bce, "sets"),
    Case(
        "BCE, weights of labels and of positives, sum",
        Loss("bce", "sum", positive_weights=WEIGHTS, label_weights=WEIGHTS.flip(0)),
        lambda z, y: bce(z, y, WEIGHTS.flip(0), pos_weight=WEIGHTS, reduction="sum"),
        "sets",
    ),
    Case(
        "BCE, divided by the samples",
        Loss("bce", "sample_mean"),
        lambda z, y: bce(z, y, reduction="sum") / len(z),
        "sets",
    ),
    Case("BCE, masked", Loss("bce", masked=True), masked, "masked"),
    Case("BCE, one logit", Loss("bce"), bce, "one"),
    Case("BCE of pixels", Loss("bce", pixels=0), bce, "sets of pixels"),
    Case("sigmoid focal", Loss("sigmoid_focal", alpha=0.25), sigmoid_focal, "sets"),
    Case("squared error", Loss("mse"), functional.mse_loss, "numbers"),
    Case("own function, softmax twice", Loss.custom(twice), twice),
    Case("own function, BCE", Loss.custom(bce, targets="label_sets"), bce, "sets"),
)


def network(case: Case, index: int) -> nn.Sequential:
    """A hidden layer before the head; of pixels both are convolutions. Double precision."""
    outputs = 1 if case.targets == "one" else OUTPUTS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(EVALUATION.derive(index, "weights"))
        layers: list[nn.Module] = (
            [nn.Conv2d(1, FEATURES, 3, padding=1), nn.ReLU(), nn.Conv2d(FEATURES, outputs, 1)]
            if "pixels" in case.targets
            else [nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, outputs)]
        )
    return nn.Sequential(*layers).double().eval()


def batch(case: Case, index: int) -> tuple[Tensor, Tensor]:
    """Inputs in single precision, so that both see the same, and targets."""
    random = torch.Generator().manual_seed(EVALUATION.derive(index, "batch"))
    maps = (SIDE, SIDE) if "pixels" in case.targets else ()
    inputs = torch.randn(SAMPLES, *((1, *maps) if maps else (FEATURES,)), generator=random)
    outputs = 1 if case.targets == "one" else OUTPUTS
    if case.targets == "numbers":
        return inputs, torch.randn(SAMPLES, outputs, generator=random)
    if case.targets in ("classes", "ignored", "pixels"):
        targets = torch.randint(OUTPUTS, (SAMPLES, *maps), generator=random)
        return inputs, targets.masked_fill(targets == 1, IGNORED) if (
            case.targets == "ignored"
        ) else targets
    targets = torch.randint(2, (SAMPLES, outputs, *maps), generator=random).float()
    if case.targets == "masked":
        targets[::3, 1] = -1.0
    return inputs, targets


def error(case: Case, index: int, dtype: torch.dtype) -> float:
    """Largest error of an entry, relative to the largest entry."""
    inputs, targets = batch(case, index)
    # Weights that single precision holds, so that only the arithmetic differs.
    model = network(case, index).float().double()
    like = targets if targets.dtype == torch.int64 else targets.double()
    value = case.value(model(inputs.double()), like)
    expected = torch.autograd.grad(value, list(model[-1].parameters()))
    given = targets.long() if case.targets in ("sets", "one", "masked") else targets
    seen = labelleak.capture(model.to(dtype), inputs.to(dtype), given, loss=case.loss)
    assert seen.gradient.bias is not None
    found = torch.cat([seen.gradient.weight, seen.gradient.bias[:, None]], dim=1).double()
    wanted = torch.cat([expected[0].flatten(1), expected[1][:, None]], dim=1)
    # One logit is read as two classes, the second of which has its gradient.
    off = found[-len(wanted) :] - wanted
    return float(off.abs().max() / wanted.abs().max())


def main() -> None:
    """Compare every loss in both precisions, print and write the largest errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = load(), list[Row]()
    for case in CASES:
        single, double = (
            max(error(case, index, dtype) for index in range(BATCHES)) for dtype in DTYPES
        )
        rows.append({"title": case.title, "single": single, "double": double})
        print(f"{case.title:<46}{single:>10.1e}{double:>10.1e}", flush=True)
    largest = {name: max(row[name] for row in rows) for name in ("single", "double")}
    write(
        given.output,
        __doc__,
        before,
        threads=1,
        range="evaluation",
        batches=BATCHES,
        largest=largest,
        rows=rows,
    )


if __name__ == "__main__":
    main()
