"""What updates give away under other losses than the plain cross-entropy: bars, and tasks.

    python benchmarks/losses.py [--data-dir DIR] [--only WORD] [--output FILE] [--kept FILE]

`auto`, or the attack that a title names, sees one update after the other of every setting, and no
label. Batches, networks and training are of the range "evaluation". Rows of the group "bars" are
those that something was expected of beforehand; those of the group "tasks" resemble what hospitals
train. Images are digits (the sample of the package), or the 100 classes of Tiny-ImageNet in the
folder `--data-dir`. Findings are synthetic: each is of some classes, and of about 60 % of their
samples, see `labelleak.lab.tasks`. The patients are scikit-learn's. A row that the output file has
already is not measured again.

`right` is the share of the classes' or labels' counts that are right, `exact` that of the batches
with all of them, `accuracy` that of the labels, `coverage` that of the true counts inside the 95 %
intervals where there are any, `macro` the mean error of a label's share of the samples, and `guess`
the same of the shares that the network was trained on. `silent` counts the batches whose counts are
wrong without a flag, `false` the certificates of wrong counts.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import labelleak
from labelleak.errors import LabelLeakError
from labelleak.lab.measures import coverage
from labelleak.metrics import score
from labelleak.shares import macro_error
from labelleak.training import LocalTraining
from loss_scenes import Scenes, hospital, images
from measuring import Row, load, write

# Limits of a search; the longer one where samples are few enough to be proven one by one.
SECONDS, SEARCH = 1.0, 30.0
BATCHES, TRAINED = 50, 20

BCE = {"kind": "bce"}
FINDINGS = {"findings": 14, "rarest": 0.06, "commonest": 0.25}
# As a site would set it: the ratio of absent to present labels at these shares, rounded.
WEIGHTS = {"kind": "bce", "positive_weights": [16, 13, 11, 10, 9, 8, 7, 6, 5, 5, 4, 4, 3, 3]}
STEPS = {"unit": "iterations", "steps": 400, "total": 400, "batch_size": 64, "learning_rate": 0.05}
IMAGES = "tiny-imagenet-100"
# Half of the classes weigh twice as much.
WEIGHED = {"kind": "cross_entropy", "class_weights": [1.0, 2.0] * 5}
OPTIMIZERS = (("SGD", "sgd", 0.1), ("Adam", "adam", 1e-3))
HEAVY = {"kind": "focal", "gamma": 2, "class_weights": [1.0, 2.0] * 50}


@dataclass(frozen=True)
class Setting:
    """A row: its group, what it is, where its updates are from, how many, and what reads them."""

    group: str
    title: str
    scenes: Scenes
    batches: int = BATCHES
    trained: bool = False
    seconds: float = SECONDS
    attack: str = "auto"


def of_size(size: int, **fields: Any) -> dict[str, Any]:
    """A batch of that size, drawn at random, and other fields."""
    return {"batch": {"size": size}, **fields}


def findings(size: int, loss: dict[str, Any] = BCE, **fields: Any) -> dict[str, Any]:
    """Fields of a setting with 14 findings."""
    return of_size(size, loss=loss, **{"targets": FINDINGS} | fields)


def twice(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of a network that ends in a softmax."""
    return functional.cross_entropy(logits.softmax(dim=1), classes)


def generalized(logits: Tensor, classes: Tensor) -> Tensor:
    """Generalized cross-entropy (Zhang and Sabuncu, NeurIPS 2018) with their exponent."""
    own = logits.softmax(dim=1).gather(1, classes[:, None])
    return ((1.0 - own**0.7) / 0.7).mean()


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropies as a user writes them."""
    return (
        -(targets * functional.logsigmoid(logits)).mean()
        - ((1.0 - targets) * functional.logsigmoid(-logits)).mean()
    )


STEP = LocalTraining("sgd", learning_rate=0.1)
AUXILIARY: dict[str, Any] = {"auxiliary_per_class": 20}
FOCAL = {"kind": "focal", "gamma": 2}
LATER: dict[str, Any] = {"batches": TRAINED, "trained": True}


def epochs(optimizer: str, rate: float) -> dict[str, Any]:
    """Two epochs of four batches."""
    return {"optimizer": optimizer, "steps": 8, "epochs": 2, "learning_rate": rate}


SETTINGS = (
    Setting("bars", "14 findings, untrained, K = 8", images(**findings(8)), seconds=SEARCH),
    *(
        Setting("bars", f"14 findings, untrained, K = {size}", images(**findings(size)))
        for size in (32, 128)
    ),
    *(
        Setting("bars", f"14 findings, 400 steps, K = {size}{also}", images(**fields), **LATER)
        for size in (32, 128)
        for also, fields in (
            ("", findings(size, training=STEPS)),
            (", auxiliary data", findings(size, training=STEPS, **AUXILIARY)),
            (
                ", ten times the auxiliary data",
                findings(size, training=STEPS, auxiliary_per_class=200),
            ),
        )
    ),
    Setting(
        "bars",
        "14 findings, 400 steps, K = 8",
        images(**findings(8, training=STEPS)),
        **LATER,
        seconds=SEARCH,
    ),
    Setting(
        "bars",
        "14 findings, 400 steps, K = 8, certificates",
        images(**findings(8, training=STEPS)),
        batches=2000,
        trained=True,
        seconds=SEARCH,
    ),
    Setting("bars", "one logit from zero, patients, K = 48", hospital(48, STEP, hidden=0)),
    *(
        Setting(
            "bars",
            f"one logit, untrained, digits, K = {size}{also}",
            images(**of_size(size, loss=BCE, targets={"positive": [1, 7]}, **fields)),
        )
        for size in (64, 256)
        for also, fields in (("", {}), (", auxiliary data", AUXILIARY))
    ),
    *(
        Setting("bars", f"one logit, untrained, patients, K = {size}", hospital(size, STEP))
        for size in (64, 256)
    ),
    Setting("bars", "focal, untrained, K = 64", images(**of_size(64, loss=FOCAL))),
    Setting(
        "bars",
        "focal, read as cross-entropy, K = 64",
        images(told=labelleak.Loss(), **of_size(64, loss=FOCAL)),
    ),
    Setting(
        "bars",
        "temperature 3, untrained, K = 32",
        images(**of_size(32, loss={"kind": "cross_entropy", "temperature": 3})),
    ),
    Setting("bars", "plain cross-entropy, untrained, K = 32", images(**of_size(32))),
    *(
        Setting("bars", f"own function: {what}, untrained, K = 32", images(own=own, **fields))
        for what, own, fields in (
            ("softmax twice", labelleak.Loss.custom(twice), of_size(32)),
            ("generalized cross-entropy", labelleak.Loss.custom(generalized), of_size(32)),
            (
                "14 findings",
                labelleak.Loss.custom(cross_entropies, targets="label_sets"),
                findings(32),
            ),
        )
    ),
    Setting("tasks", "breast cancer, one logit, one step of 48", hospital(48, STEP)),
    Setting(
        "tasks",
        "breast cancer, 2 epochs of 4 batches of 24, SGD",
        hospital(24, replace(STEP, epochs=2), steps=4),
    ),
    Setting(
        "tasks",
        "breast cancer, 2 epochs of 4 batches of 24, Adam",
        hospital(24, LocalTraining("adam", learning_rate=1e-3, epochs=2), steps=4),
        batches=TRAINED,
    ),
    Setting("tasks", "14 findings weighed, K = 32", images(**findings(32, WEIGHTS))),
    Setting(
        "tasks",
        "14 findings weighed, 400 steps, K = 32, auxiliary data",
        images(**findings(32, WEIGHTS, training=STEPS, **AUXILIARY)),
        **LATER,
    ),
    Setting(
        "tasks",
        "14 findings, a tenth of them left out, K = 32",
        images(**findings(32, BCE | {"masked": True}, targets=FINDINGS | {"left_out": 0.1})),
        batches=TRAINED,
    ),
    *(
        Setting(
            "tasks",
            f"14 findings, 2 epochs of 4 batches of 32, {name}",
            images(**findings(32, local=epochs(optimizer, rate))),
            batches=TRAINED,
        )
        for name, optimizer, rate in OPTIMIZERS
    ),
    *(
        Setting(
            "tasks",
            f"10 classes weighed, 2 epochs of 4 batches of 32, {name}, auxiliary data, `virtual`",
            images(**of_size(32, loss=WEIGHED, local=epochs(optimizer, rate), **AUXILIARY)),
            batches=TRAINED,
            attack="virtual",
            seconds=SEARCH,
        )
        for name, optimizer, rate in OPTIMIZERS
    ),
    *(
        Setting(
            "tasks",
            f"100 classes, focal with class weights, K = {size}",
            images(
                **of_size(
                    size,
                    loss=HEAVY,
                    data=IMAGES,
                    network={"name": "lenet5", "seed": "per-trial"},
                )
            ),
            batches=TRAINED,
        )
        for size in (24, 128)
    ),
)


def outcomes(setting: Setting, number: int, data_dir: str | None, kept: Path | None) -> list[Row]:
    """Those of so many updates; those that a file keeps are not made again."""
    found: list[Row] = []
    if kept is not None and kept.is_file():
        lines = map(json.loads, kept.read_text(encoding="utf-8").splitlines())
        found = [line for line in lines if line["title"] == setting.title]
    start = time.process_time()
    for seen, true, shares in setting.scenes(range(len(found), number), data_dir):
        row: Row = {"title": setting.title}
        try:
            restored = labelleak.restore(seen, setting.attack, time_limit=setting.seconds)
            row |= outcome(restored, true, seen.num_instances or 0, shares)
        except LabelLeakError as error:
            row["refused"] = str(error)
        now = time.process_time()
        row["seconds"], start = now - start, now
        found.append(row)
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")
    return found


def measured(setting: Setting, made: list[Row]) -> Row:
    """The figures of a row, from the outcomes of its updates."""
    errors = Counter(row["refused"] for row in made if "refused" in row)
    rows = [row for row in made if "refused" not in row]
    return {
        "group": setting.group,
        "title": setting.title,
        "trained": setting.trained,
        "batches": len(made),
        "time_limit": setting.seconds,
        "refused": dict(errors),
        **{name: mean([row[name] for row in rows]) for name in MEANS},
        **{name: sum(row[name] for row in rows) for name in ("silent", "false")},
        "spoke": dict(Counter(row["spoke"] for row in rows).most_common()),
        "seconds": round(statistics.fmean(row["seconds"] for row in made), 3),
    }


MEANS = ("right", "accuracy", "exact", "certified", "unflagged", "coverage", "macro", "guess")


def outcome(found: labelleak.Restoration, true: Tensor, samples: int, shares: Tensor | None) -> Row:
    """The figures of one update."""
    scored = score(found, true)
    wrong = not scored.exact
    macro = guess = None
    if found.multi_label and found.counts is not None:
        macro = macro_error(found.counts, true, samples)
        if shares is not None:
            guess = macro_error((samples * shares).round().long(), true, samples)
    return {
        "right": None if found.counts is None else float((found.counts == true).double().mean()),
        "accuracy": scored.accuracy,
        "exact": scored.exact,
        "certified": found.certified,
        "unflagged": not found.unreliable,
        "coverage": coverage(found, true),
        "macro": macro,
        "guess": guess,
        "silent": wrong and not found.unreliable,
        "false": wrong and found.certified,
        "spoke": found.attack,
    }


def mean(values: list[Any]) -> float | None:
    """Mean of what is there."""
    known = [float(value) for value in values if value is not None]
    return round(statistics.fmean(known), 4) if known else None


def main() -> None:
    """Measure every row, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir")
    parser.add_argument("--only", default="", help="rows whose titles hold this")
    parser.add_argument("--batches", type=int, help="instead of a row's own number")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--kept", type=Path, help="file of single outcomes; a run goes on from it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, kept = load(), {}
    if given.output is not None and given.output.is_file():
        kept = {row["title"]: row for row in json.loads(given.output.read_text())["rows"]}
    for setting in SETTINGS:
        if given.only not in setting.title or setting.title in kept:
            continue
        number = given.batches or setting.batches
        row = measured(setting, outcomes(setting, number, given.data_dir, given.kept))
        kept[setting.title] = row
        print(
            f"{setting.title}: {json.dumps({k: row[k] for k in row if k != 'title'})}", flush=True
        )
        rows = [kept[one.title] for one in SETTINGS if one.title in kept]
        write(given.output, __doc__, before, threads=1, range="evaluation", rows=rows)


if __name__ == "__main__":
    main()
