"""Where the updates of `losses.py` come from: experiments, and patients of a hospital."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import labelleak
from labelleak.federated import train_locally
from labelleak.lab.definition import Experiment
from labelleak.lab.materials import dataset_of, network_of, training_of, training_set
from labelleak.lab.pretraining import train
from labelleak.lab.ranges import EVALUATION
from labelleak.lab.trial import set_up
from labelleak.training import LocalTraining

Scene = tuple[labelleak.Observation, Tensor, Tensor | None]
"""What the server sees, the true counts, and the labels' shares among the samples that a network
was trained on."""

Scenes = Callable[[range, str | None], Iterator[Scene]]
"""The updates of these numbers, given the folder of the data."""


def images(
    told: labelleak.Loss | None = None, own: labelleak.Loss | None = None, **fields: Any
) -> Scenes:
    """Updates of an experiment; `told` is what the server takes for the loss.

    A loss of the client's `own` stands in place of the experiment's.
    """
    given = {"data": "mnist-sample", "attacks": ["auto"], "trials": 1}
    given["network"] = {"name": "fcn-3"} if "training" in fields else FRESH
    experiment = Experiment.model_validate(given | {"name": "a"} | fields)

    def scenes(numbers: range, data_dir: str | None) -> Iterator[Scene]:
        shares = None
        if (stage := training_of(experiment)) is not None:
            known = training_set(experiment, data_dir)
            train(network_of(experiment), [stage], known, experiment.loss)
            if known.label_sets is not None:
                shares = (known.label_sets == 1).double().mean(dim=0)
        dataset_of(experiment, experiment.data_split, data_dir)
        for index in numbers:
            scene = set_up(experiment, index, data_dir)
            seen = scene.observation
            if own is not None:
                inputs, targets = scene.batch.inputs(), scene.batch.targets
                seen = labelleak.capture(scene.model, inputs, targets, loss=own)
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


def hospital(size: int, recipe: LocalTraining, hidden: int = 32, steps: int = 1) -> Scenes:
    """Updates of a hospital with one logit; without a hidden layer it starts at zero."""

    def scenes(numbers: range, _: str | None) -> Iterator[Scene]:
        inputs, labels = patients()
        for index in numbers:
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
