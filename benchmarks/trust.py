"""How far a verdict can be trusted: right, or flagged, over networks, batches and facts.

    python benchmarks/trust.py --records trust.jsonl [--batches 3000] [--development]
        [--output results/benchmark-trust.json]

Every seed draws a network (2 to 1000 classes; ReLU, GELU, tanh or BatchNorm in training mode;
untrained to well trained), a batch (4 to 512 samples), what the server knows, and what was done to
the update: nothing, a fact told wrongly, a defense, or local steps. The audit (`auto`) sees the
gradient that autograd makes in single precision.

Records are appended as they come; a run that was interrupted goes on where it stopped. Bounds of
the attacks were chosen on small seeds; the evaluation range (`labelleak.lab.ranges`) has others,
hence other networks and batches, and other images.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

if __name__ == "__mp_main__":
    # Attacks in a worker read the processor's clock, whatever else the machine is doing. They take
    # it where they are defined, so it has to be there before they are imported.
    time.monotonic = time.process_time

import torch
from torch import Tensor, nn

import labelleak
from labelleak import defenses
from labelleak.lab.datasets import load as load_data
from labelleak.lab.datasets.samplers import draw
from labelleak.lab.networks import build
from labelleak.lab.ranges import DEVELOPMENT, EVALUATION, Range
from measuring import Row, load, write

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
CLASSES = (2, 2, 3, 4, 10, 10, 10, 30, 100, 1000)
STEPS = (0, 0, 0, 20, 100, 400)
SECONDS = 1.0
FEATURES, HIDDEN, SPREAD = 32, 96, 0.35
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "batchnorm": lambda: nn.Sequential(nn.BatchNorm1d(HIDDEN), nn.ReLU()),
}
DIGITS = ("fcn-3", "lenet5")
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "dirichlet": ("dirichlet", {"alpha": 0.5}),
    "few": ("random_classes", {"num_classes": 2}),
}
# What was told wrongly, or done to the update without a word.
WRONG: dict[str, tuple[Any, ...]] = {
    "factor": (0.01, 0.03, 0.1, 0.3, 0.5, 2.0, 4.0, 1024.0, 65536.0),
    "summed": (None,),
    "temperature": (2.0, 3.0),
    "softmax twice": (None,),
    "smoothing": (0.1, 0.2),
    "class weights": (None,),
    "batch size": (0.5, 2.0),
}
DEFENSES: dict[str, Callable[[dict[str, Tensor], Random], Any]] = {
    "noise": lambda g, r: defenses.gaussian_noise(
        g, r.choice((1e-4, 1e-3, 1e-2)), generator=torch.Generator().manual_seed(r.randrange(9999))
    ),
    "clip": lambda g, r: defenses.clip_norm(g, r.choice((0.5, 0.1)) * _norm(g)),
    "sparsify": lambda g, r: defenses.sparsify(g, r.choice((20.0, 60.0, 90.0))),
    "quantize": lambda g, r: defenses.quantize(g, r.choice((4, 8))),
    "sign": lambda g, _: defenses.sign(g),
}


class Drawn(NamedTuple):
    """What a seed stands for."""

    network: str
    classes: int
    steps: int
    size: int
    sampler: str
    knows: str
    kind: str
    value: Any
    seed: int


def drawn(seed: int) -> Drawn:
    """The setting of a seed."""
    random = Random(seed)
    classes = random.choice(CLASSES)
    network = random.choice((*ACTIVATIONS, *(DIGITS if classes in (2, 10, 100) else ())))
    kind = random.choices(("plain", "wrong", "defended", "local"), (5, 2, 2, 1))[0]
    value: Any = None
    if kind == "wrong":
        name = random.choice(tuple(WRONG))
        value = (name, random.choice(WRONG[name]))
    if kind == "defended":
        value = random.choice(tuple(DEFENSES))
    if kind == "local":
        value = random.choice((2, 5, 10))
    return Drawn(
        network=network,
        classes=classes,
        steps=random.choice(STEPS),
        size=random.choice(SIZES),
        sampler=random.choice(tuple(SAMPLERS)),
        knows=random.choices(("head", "model", "auxiliary"), (3, 5, 2))[0],
        kind=kind,
        value=value,
        seed=seed,
    )


def world(one: Drawn, where: Range) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, trained, with inputs and labels that batches are drawn from."""
    torch.manual_seed(one.seed)
    if one.network in DIGITS:
        inputs, labels = digits(where, one.classes)
        shape = (1, 28, 56 if one.classes == 100 else 28)
        model = build(one.network, classes=one.classes, image_shape=shape, seed=one.seed)
    else:
        inputs, labels = mixture(one.classes)
        activation = ACTIVATIONS[one.network]
        model = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), activation(), nn.Linear(HIDDEN, HIDDEN), activation(),
            nn.Linear(HIDDEN, one.classes),
        )  # fmt: skip
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(one.steps):
        chosen = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if one.network != "batchnorm":
        model.eval()
    if one.network in DIGITS:
        return model, inputs, labels
    return model, *mixture(one.classes)


def mixture(classes: int) -> tuple[Tensor, Tensor]:
    """New samples of classes about their own centers, which a seed of torch's has drawn."""
    number = max(4000, 4 * classes)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    centers = torch.randn(classes, FEATURES, generator=generator)
    labels = torch.arange(number) % classes
    # Torch's own state moves on with every call: training and test samples differ.
    return SPREAD * centers[labels] + torch.randn(number, FEATURES), labels


@cache
def digits(where: Range, classes: int) -> tuple[Tensor, Tensor]:
    """Digits, odd or even ones, or two side by side."""
    dataset = load_data("mnist-sample", split="train")
    images, labels = dataset.batch(where.samples(dataset.labels))
    if classes == 10:
        return images, labels
    if classes == 2:
        return images, labels % 2
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(len(labels), (2, 8000), generator=generator)
    return torch.cat([images[left], images[right]], dim=3), labels[left] * 10 + labels[right]


def loss_of(one: Drawn) -> Callable[[Tensor, Tensor], Tensor]:
    """The client's loss."""
    name: str = ""
    value: Any = None
    if one.kind == "wrong":
        name, value = one.value
    cross_entropy = nn.functional.cross_entropy
    if name == "summed":
        return partial(cross_entropy, reduction="sum")
    if name == "temperature":
        return lambda logits, labels: cross_entropy(logits / value, labels)
    if name == "softmax twice":
        return lambda logits, labels: cross_entropy(logits.softmax(dim=1), labels)
    if name == "smoothing":
        return partial(cross_entropy, label_smoothing=value)
    if name == "class weights":
        return partial(cross_entropy, weight=0.2 + 2.0 * torch.rand(one.classes))
    factor = value if name == "factor" else 1.0
    return lambda logits, labels: factor * cross_entropy(logits, labels)


def observed(one: Drawn, where: Range) -> tuple[labelleak.Observation, Tensor]:
    """What the server sees, and the true counts."""
    model, inputs, labels = world(one, where)
    steps = one.value if one.kind == "local" else 1
    sampler, options = SAMPLERS[one.sampler]
    if "num_classes" in options:
        options = {"num_classes": min(one.classes, options["num_classes"])}
    chosen = draw(sampler, labels, steps * one.size, one.seed, replacement=True, **options)
    counts = torch.bincount(labels[chosen], minlength=one.classes)
    auxiliary = None
    if one.knows == "auxiliary":
        others = torch.arange(len(labels))[~torch.isin(torch.arange(len(labels)), chosen)]
        others = others[torch.randperm(len(others))[: max(1000, 2 * one.classes)]]
        auxiliary = labelleak.Auxiliary(inputs[others], labels[others])
    given: dict[str, Any] = {"auxiliary": auxiliary, "input_shape": tuple(inputs.shape[1:])}
    if one.knows == "head":
        given = {}
    if one.kind == "local":
        return after_steps(one, model, inputs[chosen], labels[chosen], given), counts
    loss = loss_of(one)(model(inputs[chosen]), labels[chosen])
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    named = dict(zip(names, gradients, strict=True))
    if one.kind == "defended":
        named = dict(DEFENSES[one.value](named, Random(one.seed)))
    size = one.size
    if one.kind == "wrong" and one.value[0] == "batch size":
        size = max(1, round(size * one.value[1]))
    known: Any = dict(model.state_dict()) if one.knows == "head" else model
    return labelleak.observe(known, named, batch_size=size, **given), counts


def after_steps(
    one: Drawn, model: nn.Module, inputs: Tensor, labels: Tensor, given: dict[str, Any]
) -> labelleak.Observation:
    """What the server sees of a client that trained for several steps of plain SGD."""
    rate = 0.05
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for start in range(0, len(labels), one.size):
        part = slice(start, start + one.size)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    training = labelleak.LocalTraining(batch_size=one.size, steps=one.value, learning_rate=rate)
    known = None if one.knows == "head" else model
    return labelleak.observe_update(known, before, after, training=training, **given)


def measured(seed: int, where: Range) -> Row:
    """What the audit says of a seed's update, beside the truth."""
    torch.set_num_threads(1)
    one = drawn(seed)
    seen, true = observed(one, where)
    row: Row = {**one._asdict()}
    try:
        found = labelleak.restore(seen, time_limit=SECONDS)
    except labelleak.LabelLeakError as error:
        return {**row, "error": str(error)}
    counts, intervals = found.counts, found.intervals
    total = int(true.sum())
    row |= {
        "error": None,
        "spoke": found.attack,
        "certified": found.certified,
        "flags": [flag.name.lower() for flag in found.flags],
        "unreliable": found.unreliable,
        "right": counts is not None and torch.equal(counts, true),
        "accuracy": None if counts is None else _matched(counts, true) / total,
        "guess": _matched(torch.full(true.shape, total / len(true)), true) / total,
        "too_certain": found.certain is not None and bool((found.certain > true).any()),
        "inside": None,
    }
    if intervals is not None and counts is not None:
        low, high = intervals.T
        row["inside"] = float(((low <= true) & (true <= high)).double().mean())
    return row


def _matched(counts: Tensor, true: Tensor) -> float:
    return float(torch.minimum(counts, true).sum())


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(one.square().sum()) for one in gradients.values()))


def recorded(path: Path, where: Range, number: int) -> Iterable[Row]:
    """All records of so many seeds, those that are missing made and appended."""
    rows = {row["seed"]: row for row in _whole_lines(path)}
    wanted = [where.numbered(place) for place in range(number)]
    missing = [seed for seed in wanted if seed not in rows]
    with (
        path.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        for done, row in enumerate(pool.map(partial(measured, where=where), missing), 1):
            rows[row["seed"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if done % 50 == 0:
                print(f"{done} of {len(missing)}", flush=True)
    return [rows[seed] for seed in wanted]


def _whole_lines(path: Path) -> Iterable[Row]:
    """The records of a file, but for a last line that was cut off."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def summed(rows: Iterable[Row]) -> Row:
    """Shares over some records."""
    known = [row for row in rows if row["error"] is None]
    sure = [row for row in known if not row["unreliable"]]
    told = [row for row in known if row["inside"] is not None]
    counted = [row for row in known if row["accuracy"] is not None]
    return {
        "batches": len(known),
        "refused": len(list(rows)) - len(known),
        "right": _mean([row["right"] for row in known]),
        "certified": sum(row["certified"] for row in known),
        "unflagged": len(sure),
        "right_unflagged": _mean([row["right"] for row in sure]),
        "right_or_flagged": _mean([row["right"] or row["unreliable"] for row in known]),
        "too_certain": sum(row["too_certain"] for row in known),
        "with_intervals": len(told),
        "inside": _mean([row["inside"] for row in told]),
        "accuracy": _mean([row["accuracy"] for row in counted]),
        "guess": _mean([row["guess"] for row in counted]),
    }


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def tables(rows: list[Row]) -> dict[str, list[Row]]:
    """Records by what was done, and those of which nothing was done by every other respect."""
    found: dict[str, list[Row]] = {}
    plain = [row for row in rows if row["kind"] == "plain" and row["error"] is None]
    respects: dict[str, tuple[list[Row], Callable[[Row], Any]]] = {
        "kind": (rows, lambda row: row["kind"]),
        "done": ([row for row in rows if row["kind"] != "plain"], _what),
    }
    for name in ("classes", "size", "steps", "network", "sampler", "knows", "spoke"):
        respects[name] = (plain, itemgetter(name))
    for name, (some, respect) in respects.items():
        groups: dict[Any, list[Row]] = defaultdict(list)
        for row in some:
            groups[respect(row)].append(row)
        order = sorted(groups, key=lambda value: (isinstance(value, str), str(value).zfill(9)))
        found[name] = [{name: value, **summed(groups[value])} for value in order]
    return found


def _what(row: Row) -> str:
    """What was told wrongly or done to the update, in words."""
    value = row["value"]
    if row["kind"] == "local":
        return f"{value} local steps"
    return str(value if isinstance(value, str) else value[0])


def main() -> None:
    """Measure what is missing, print the tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--records", type=Path, required=True, help="where every batch is kept")
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    where, before = DEVELOPMENT if given.development else EVALUATION, load()
    rows = list(recorded(given.records, where, given.batches))
    found = tables(rows)
    for name, table in found.items():
        for row in table:
            shares = (row["right"], row["right_unflagged"], row["inside"], row["accuracy"])
            text = "".join("      -" if share is None else f"{share:7.3f}" for share in shares)
            print(f"{name} {row[name]!s:<20}{row['batches']:>6}{row['unflagged']:>6}{text}")
    write(given.output, __doc__, before, threads=2, range=where.name, seconds=SECONDS, **found)


if __name__ == "__main__":
    main()
