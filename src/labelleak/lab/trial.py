"""One trial: draw a batch, observe the update, attack it, score the attacks and make a record.

A record is plain data for one line of JSON::

    {
      "schema": "labelleak/trial/1",
      "key": "9f0c...",                 # Experiment.trial_key
      "definition": "41aa...",          # Experiment.definition_key
      "code": "0b7d...",                # hash of the code that ran it
      "plugins": {"mine": "my-attack 0.1.0"},  # only with plug-ins: the packages they are from
      "experiment": "FCN-3", "trial": 0,
      "data": {"name": "mnist-evaluation", "stands_in_for": null, "split": "train"},
      "network": "fcn-3",
      "classes": 10, "features": 300, "batch_size": 24,
      "attacks": {
        "ilrg": {
          "counts": {"leacc": 1.0, "lnacc": 1.0, "recall": 1.0, "accuracy": 1.0, "exact": true,
                     "existence_precision": 1.0, "existence_recall": 1.0},
          "rounded": {...},             # the same before the sum is repaired, as published; or null
          "certified": false,
          "flags": ["total_does_not_fit"],
          "error": null,                # why it could not run; counts and rounded are then null
          "predicted": {"0": 1, ...},   # sampler imbalanced only: the counts above zero by class,
                                        # of "rounded" where there is such
          "spoke": "exact",             # auto only: the attack that it chose
          "macro_error": 0.01,          # label sets only: mean error of a label's share
        }
      },
      "baselines": {"uniform": {...}},  # scores like those of "counts"; only if asked for
      "measures": {"embedding_cossim": 0.98, ...},
      "pictures": {...}                 # only with an inversion; as in `image_reconstruction`
    }

A record holds no path, and no time unless the measure ``seconds`` is asked for: the same trial
gives the same record on any machine with the same kind of processor and the same versions of torch,
unless an attack searches until its time limit. Other processors round differently, which trained
networks and borderline flags show. Records made before the ranges have neither ``definition`` nor
``code``.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from labelleak.attacks import restore
from labelleak.errors import LabelLeakError
from labelleak.lab.datasets import Dataset
from labelleak.lab.datasets.samplers import some_of_each_class
from labelleak.lab.definition import AttackSetting, Experiment, Network, Training
from labelleak.lab.earlier_rounds import after_earlier_rounds
from labelleak.lab.image_reconstruction import reconstruct
from labelleak.lab.keys import TRIAL_SCHEMA
from labelleak.lab.materials import (
    cached_dataset,
    dataset_of,
    network_of,
    training_of,
    training_set,
)
from labelleak.lab.measures import ClassSums, baseline, coverage, measure
from labelleak.lab.pretraining import load_network
from labelleak.lab.ranges import RANGES
from labelleak.lab.simulated_client import (
    ClientSamples,
    draw_samples,
    empty_class_sums,
    observe_client,
)
from labelleak.lab.store import Record
from labelleak.lab.tasks import LossSetting
from labelleak.lab.threads import one_thread
from labelleak.metrics import score
from labelleak.observation import Auxiliary, Observation
from labelleak.plugins import what_went_wrong
from labelleak.restoration import Restoration
from labelleak.shares import macro_error

Watch = Callable[[str, Observation, Restoration], None]
"""Called with the name of an attack, what it saw and what it restored."""

_lock = threading.Lock()


def run_trial(
    experiment: Experiment,
    index: int,
    data_dir: Path | str | None = None,
    *,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Record:
    """Run one trial of an experiment.

    On the CPU one thread computes, so that the same trial gives the same record bit for bit on the
    same kind of processor, whatever else runs beside it. Data sets and networks are kept for the
    next trial.

    Args:
        experiment: The experiment.
        index: Number of the trial, from 0; with the experiment's seed it decides what is drawn.
        data_dir: Folder with the data, as in `labelleak.lab.datasets.load`.
        device: Where the network runs, ``"cpu"`` or ``"cuda"``.
        watch: Called after each attack that did not fail.

    Returns:
        The record, in the format described above.

    Raises:
        DataNotFound: The data set, or the trained network, is missing.
        UnreadableFile: A file of either is broken.
        LabelLeakError: There is no GPU on this machine.
        ValueError: The data set has no such batch, or its images do not fit the network.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LabelLeakError("there is no CUDA GPU here: take the device cpu")
    # Hooks sit on the cached network while a batch goes through it: one trial at a time.
    with _lock, one_thread():
        return _run(experiment, index, data_dir, device, watch)


def forget() -> None:
    """Release the data sets and networks that this process keeps."""
    cached_dataset.cache_clear()
    _network.cache_clear()
    after_earlier_rounds.cache_clear()


@lru_cache(maxsize=2)
def _network(
    network: Network,
    training: Training | None,
    dataset: Dataset,
    loss: LossSetting | None,
    device: str,
) -> nn.Module:
    return load_network(network, training, dataset, loss).to(device).eval()


@dataclass(frozen=True)
class Scene:
    """What a trial has before any attack runs.

    Attributes:
        dataset: The samples that batches are drawn from.
        model: The network, in evaluation mode.
        batch: The client's samples.
        sums: Sums by class of embeddings and predictions, where a measure needs them.
        observation: What the server sees.
    """

    dataset: Dataset
    model: nn.Module
    batch: ClientSamples
    sums: ClassSums | None
    observation: Observation


def _run(
    experiment: Experiment,
    index: int,
    data_dir: Path | str | None,
    device: str,
    watch: Watch | None,
) -> Record:
    seed = partial(RANGES[experiment.range].derive, experiment.seed, index)
    scene = set_up(experiment, index, data_dir, device)
    outcomes, measures = _attack(experiment, scene, watch)
    reconstruction: Record = {}
    if experiment.inversion is not None:
        batch = scene.batch
        truth = scene.dataset.labels[batch.indices].to(device)
        scores, reconstruction = reconstruct(
            experiment, scene.model, scene.dataset, batch.inputs(), truth, seed("inversion"), index
        )
        measures |= scores
    return {
        "schema": TRIAL_SCHEMA,
        "key": experiment.trial_key(index),
        "definition": experiment.definition_key(index),
        "code": experiment.code,
        **_plugins(experiment),
        "experiment": experiment.name,
        "trial": index,
        "data": {
            "name": scene.dataset.name,
            "stands_in_for": experiment.stands_in_for,
            "split": experiment.data_split,
        },
        "network": experiment.network.name,
        "classes": scene.dataset.counted,
        "features": scene.observation.head.features,
        "batch_size": experiment.batch.size,
        "attacks": outcomes,
        "measures": measures,
        **_baselines(experiment, scene.batch.true_counts, seed("baselines")),
        **reconstruction,
    }


def _plugins(experiment: Experiment) -> Record:
    packages = {label: one.package for label, one in experiment.plugins_used}
    return {"plugins": packages} if packages else {}


def set_up(
    experiment: Experiment,
    index: int,
    data_dir: Path | str | None = None,
    device: str = "cpu",
) -> Scene:
    """Draw the batch of a trial, and observe its update.

    Args:
        experiment: As of `run_trial`, as are the following.
        index: Number of the trial.
        data_dir: Folder with the data.
        device: Where the network runs.

    Returns:
        The scene, before any attack.

    Raises:
        DataNotFound: The data set, or the trained network, is missing.
        ValueError: The data set has no such batch, or its images do not fit the network.
    """
    seed = partial(RANGES[experiment.range].derive, experiment.seed, index)
    dataset = dataset_of(experiment, experiment.data_split, data_dir)
    network = network_of(experiment, own_seed=seed("network"))
    known = training_set(experiment, data_dir)
    model = _network(network, training_of(experiment), known, experiment.loss, device)
    if experiment.local is not None and experiment.local.round > 1:
        model = after_earlier_rounds(experiment, experiment.local, model, dataset, device)
    batch = draw_samples(experiment, dataset, seed, device)
    sums = empty_class_sums(model) if experiment.of_ilrg else None
    observation = observe_client(experiment, model, batch, seed, sums)
    if experiment.auxiliary_per_class is not None:
        others = dataset_of(experiment, "test", data_dir)
        number = experiment.auxiliary_per_class
        inputs, targets = others.batch(some_of_each_class(others.labels, number, seed("auxiliary")))
        auxiliary = Auxiliary(inputs.to(device), targets.to(device))
        observation = replace(observation, auxiliary=auxiliary)
    if experiment.known_classes:
        present = batch.true_counts.nonzero()[:, 0].to(device)
        observation = replace(observation, present_classes=present)
    return Scene(dataset, model, batch, sums, observation)


def _attack(
    experiment: Experiment, scene: Scene, watch: Watch | None
) -> tuple[Record, dict[str, float]]:
    """The outcome of each attack, and what is measured of them."""
    outcomes: Record = {}
    measures: dict[str, float] = {}
    true_counts = scene.batch.true_counts
    for setting in experiment.attack_settings:
        name = setting.label
        start = time.process_time()
        try:
            found = _restored(setting, scene.observation, experiment.time_limit)
            seconds = time.process_time() - start
            outcomes[name] = _scored(found, true_counts)
        except LabelLeakError as error:
            outcomes[name] = _failed(str(error))
            continue
        except Exception as error:
            if setting.plugin is None:
                raise
            outcomes[name] = _failed(what_went_wrong(error))
            continue
        if watch is not None:
            watch(name, scene.observation, found)
        if name == "auto":
            outcomes[name]["spoke"] = found.attack
        measures |= _of_attack(experiment, name, found, true_counts, seconds)
        if experiment.batch.sampler == "imbalanced":
            outcomes[name]["predicted"] = _predicted(found)
        if name == "ilrg" and scene.sums is not None:
            means = scene.sums.means()
            measures |= measure(experiment.of_ilrg, found, scene.observation, means)
    return outcomes, measures


def _restored(
    setting: AttackSetting, observation: Observation, time_limit: float | None
) -> Restoration:
    limit = {} if time_limit is None else {"time_limit": time_limit}
    return restore(observation, setting.registered_name, **(limit | dict(setting.parameters)))


def _scored(found: Restoration, true_counts: Tensor) -> Record:
    rounded = None
    if found.rounded is not None:
        rounded = score(found, true_counts, use="rounded").as_dict()
    outcome: Record = {
        "counts": score(found, true_counts).as_dict(),
        "rounded": rounded,
        "certified": found.certified,
        "flags": [flag.name.lower() for flag in found.flags],
        "error": None,
    }
    if found.multi_label and found.counts is not None and found.samples is not None:
        outcome["macro_error"] = macro_error(found.counts, true_counts, found.samples)
    return outcome


def _of_attack(
    experiment: Experiment, name: str, found: Restoration, true_counts: Tensor, seconds: float
) -> dict[str, float]:
    """Measures of a single attack."""
    measures = {}
    if "coverage" in experiment.measures:
        share = coverage(found, true_counts)
        if share is not None:
            measures[f"{name}.coverage"] = share
    if "seconds" in experiment.measures:
        measures[f"{name}.seconds"] = seconds
    return measures


def _baselines(experiment: Experiment, true_counts: Tensor, seed: int) -> Record:
    if not experiment.baselines:
        return {}
    scores = {}
    for name in experiment.baselines:
        counts = baseline(name, true_counts, torch.Generator().manual_seed(seed))
        found = Restoration(counts > 0, counts, attack=name)
        scores[name] = score(found, true_counts).as_dict()
    return {"baselines": scores}


def _failed(reason: str) -> Record:
    return {
        "counts": None, "rounded": None, "certified": False, "flags": [], "error": reason
    }  # fmt: skip


def _predicted(found: Restoration) -> dict[str, int]:
    counts = found.counts if found.rounded is None else found.rounded
    if counts is None:
        return {}
    return {str(label): int(counts[label]) for label in counts.nonzero()[:, 0].tolist()}
