"""What updates give away under other losses than the plain cross-entropy: bars, and tasks.

    python benchmarks/losses.py [--data-dir DIR] [--only WORD] [--output FILE]

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import labelleak
from labelleak.errors import LabelLeakError
from labelleak.federated import train_locally
from labelleak.lab.definition import Experiment
from labelleak.lab.materials import dataset_of, network_of, training_of, training_set
from labelleak.lab.measures import coverage
from labelleak.lab.pretraining import train
from labelleak.lab.ranges import EVALUATION
from labelleak.lab.trial import set_up
from labelleak.metrics import score
from labelleak.shares import macro_error
from labelleak.training import LocalTraining
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

Scene = tuple[labelleak.Observation, Tensor, Tensor | None]
"""What the server sees, the true counts, and the labels' shares among the samples that a network
was trained on."""


@dataclass(frozen=True)
class Setting:
    """A row: its group, what it is, where its updates are from, how many, and what reads them."""

    group: str
    title: str
    scenes: Callable[[int, str | None], Iterator[Scene]]
    batches: int = BATCHES
    trained: bool = False
    seconds: float = SECONDS
    attack: str = "auto"


def images(told: labelleak.Loss | None = None, **fields: Any) -> Callable[..., Iterator[Scene]]:
    """Updates of an experiment; `told` is what the server takes for the loss."""
    given = {"data": "mnist-sample", "attacks": ["auto"], "trials": 1}
    given["network"] = {"name": "fcn-3"} if "training" in fields else FRESH
    experiment = Experiment.model_validate(given | {"name": "a"} | fields)

    def scenes(number: int, data_dir: str | None) -> Iterator[Scene]:
        shares = None
        if (stage := training_of(experiment)) is not None:
            known = training_set(experiment, data_dir)
            train(network_of(experiment), [stage], known, experiment.loss)
            if known.label_sets is not None:
                shares = (known.label_sets == 1).double().mean(dim=0)
        dataset_of(experiment, experiment.data_split, data_dir)
        for index in range(number):
            scene = set_up(experiment, index, data_dir)
            seen = scene.observation
            if told is not None:
                seen = replace(seen, loss=told)
            yield seen, scene.batch.true_counts, shares

    return scenes


FRESH = {"name": "fcn-3", "seed": "per-trial"}


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Standardized measurements of 569 patients, and whether the tumor is malignant."""
    from sklearn.datasets import load_breast_cancer

    measured, benign = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(measured, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), 1 - torch.tensor(benign)


def hospital(
    size: int, recipe: LocalTraining, hidden: int = 32, steps: int = 1
) -> Callable[..., Iterator[Scene]]:
    """Updates of a hospital with one logit; without a hidden layer it starts at zero."""

    def scenes(number: int, _: str | None) -> Iterator[Scene]:
        inputs, labels = patients()
        for index in range(number):
            random = torch.Generator().manual_seed(EVALUATION.derive(0, index, "patients"))
            taken = torch.randperm(len(labels), generator=random)[: size * steps]
            update = train_locally(
                network(hidden, EVALUATION.derive(0, index, "weights")),
                inputs[taken],
                labels[taken],
                replace(recipe, batch_size=size),
                classes=2,
                loss="bce",
                seed=index,
            )
            model = network(hidden, EVALUATION.derive(0, index, "weights"))
            yield update.observe(model), update.true_counts, None

    return scenes


def network(hidden: int, seed: int) -> nn.Module:
    """One logit, of a logistic regression at zero or behind a hidden layer."""
    width = patients()[0].shape[1]
    if not hidden:
        model = nn.Linear(width, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def of_size(size: int, **fields: Any) -> dict[str, Any]:
    """A batch of that size, drawn at random, and other fields."""
    return {"batch": {"size": size}, **fields}


def findings(size: int, loss: dict[str, Any] = BCE, **fields: Any) -> dict[str, Any]:
    """Fields of a setting with 14 findings."""
    return of_size(size, loss=loss, **{"targets": FINDINGS} | fields)


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
        )
    ),
    Setting(
        "bars",
        "14 findings, 400 steps, K = 8",
        images(**findings(8, training=STEPS)),
        **LATER,
        seconds=SEARCH,
    ),
    Setting("bars", "one logit from zero, patients, K = 48", hospital(48, STEP, hidden=0)),
    *(
        Setting(
            "bars",
            f"one logit, untrained, digits, K = {size}",
            images(**of_size(size, loss=BCE, targets={"positive": [1, 7]})),
        )
        for size in (64, 256)
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


def measured(setting: Setting, number: int, data_dir: str | None) -> Row:
    """The figures of a row."""
    start, rows, errors = time.process_time(), [], Counter[str]()
    for seen, true, shares in setting.scenes(number, data_dir):
        try:
            found = labelleak.restore(seen, setting.attack, time_limit=setting.seconds)
        except LabelLeakError as error:
            errors[str(error)] += 1
            continue
        rows.append(outcome(found, true, seen.num_instances or 0, shares))
    return {
        "group": setting.group,
        "title": setting.title,
        "trained": setting.trained,
        "batches": number,
        "time_limit": setting.seconds,
        "refused": dict(errors),
        **{name: mean([row[name] for row in rows]) for name in MEANS},
        **{name: sum(row[name] for row in rows) for name in ("silent", "false")},
        "spoke": dict(Counter(row["spoke"] for row in rows).most_common()),
        "seconds": round((time.process_time() - start) / number, 3),
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
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, kept = load(), {}
    if given.output is not None and given.output.is_file():
        kept = {row["title"]: row for row in json.loads(given.output.read_text())["rows"]}
    for setting in SETTINGS:
        if given.only not in setting.title or setting.title in kept:
            continue
        row = measured(setting, given.batches or setting.batches, given.data_dir)
        kept[setting.title] = row
        print(
            f"{setting.title}: {json.dumps({k: row[k] for k in row if k != 'title'})}", flush=True
        )
        rows = [kept[one.title] for one in SETTINGS if one.title in kept]
        write(given.output, __doc__, before, threads=1, range="evaluation", rows=rows)


if __name__ == "__main__":
    main()
