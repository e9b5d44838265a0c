"""One trial: a batch is drawn, its gradient observed, attacked and scored, and recorded.

A record is plain data for one line of JSON::

    {
      "schema": "labelleak/trial/1",
      "key": "9f0c...",                 # Experiment.trial_key
      "experiment": "FCN-3", "trial": 0,
      "data": {"name": "mnist", "stands_in_for": null, "split": "train"},
      "network": "fcn-3",
      "classes": 10, "features": 300, "batch_size": 24,
      "attacks": {
        "ilrg": {
          "counts": {"leacc": 1.0, "lnacc": 1.0, "recall": 1.0, "accuracy": 1.0, "exact": true,
                     "existence_precision": 1.0, "existence_recall": 1.0},
          "rounded": {...},             # the same before the sum is repaired, as published; or null
          "certified": false,
          "flags": ["total_does_not_fit"],
          "error": null,                # why it could not run; counts and rounded are null then
          "predicted": {"0": 1, ...},   # sampler imbalanced only: numbers above zero by class,
                                        # those of "rounded" where there are such
          "spoke": "exact",             # auto only: which attack
        }
      },
      "baselines": {"uniform": {...}},  # scores as "counts" has them; where asked for
      "measures": {"embedding_cossim": 0.98, ...},
      "pictures": {...}                 # experiments with an inversion only, see
    }                                   # `labelleak.experiments.pictures`

It holds no place, and no time but where the measure ``seconds`` is asked for: the same trial gives
the same record wherever it runs, unless an attack searches until its time is over.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from labelleak import defenses
from labelleak.attacks import Need, attacks, restore
from labelleak.capture import capture, find_head, whole_gradient
from labelleak.capture.heads import module_shapes
from labelleak.data import Dataset, draw, load
from labelleak.errors import LabelLeakError
from labelleak.experiments.definition import (
    TRIAL_SCHEMA,
    Defense,
    Experiment,
    Network,
    Training,
    derive_seed,
)
from labelleak.experiments.measures import ClassSums, baseline, coverage, measure
from labelleak.experiments.pictures import reconstruct
from labelleak.experiments.training import load_network, one_thread, training_samples
from labelleak.metrics import counts_of, score
from labelleak.observation import Observation
from labelleak.restoration import Restoration

Record = dict[str, Any]

# Pixels that go through the network at once: small enough for the widest layers of a ResNet without
# pooling, large enough that speed does not suffer. Images beside each other fill it, 64 at most.
_CHUNK_PIXELS = 200_000
_CHUNK_IMAGES = 64
_lock = threading.Lock()


def run_trial(
    experiment: Experiment,
    index: int,
    data_dir: Path | str | None = None,
    *,
    device: str = "cpu",
) -> Record:
    """Run one trial of an experiment.

    On the CPU one thread computes, so that the same trial gives the same record bit for bit
    whatever else runs beside it. Data sets and networks are kept for the next trial.

    Args:
        experiment: The experiment.
        index: Number of the trial, from 0; with the experiment's seed it decides what is drawn.
        data_dir: Where the data is, see `labelleak.data.load`.
        device: Where the network runs, ``"cpu"`` or ``"cuda"``.

    Returns:
        The record, see this module's description.

    Raises:
        DataNotFound: The data set, or the trained network, is not there.
        UnreadableFile: A file of either is broken.
        LabelLeakError: There is no GPU here.
        ValueError: The data set has no such batch, or its images do not fit the network.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LabelLeakError("there is no CUDA GPU here: take the device cpu")
    # Hooks sit on the cached network while a batch goes through: one trial at a time.
    with _lock, one_thread():
        return _run(experiment, index, data_dir, device)


@lru_cache(maxsize=2)
def cached_dataset(
    name: str, split: str, data_dir: Path | str | None, image_size: int | None
) -> Dataset:
    """A data set as `labelleak.data.load` gives it, kept for the next call of this process."""
    return load(name, split=split, data_dir=data_dir, image_size=image_size)


def forget() -> None:
    """Give back the memory of the data sets and networks that this process keeps."""
    cached_dataset.cache_clear()
    _network.cache_clear()


def training_set(experiment: Experiment, data_dir: Path | str | None) -> Dataset:
    """The data set that the experiment's network is made for, and trained on.

    Args:
        experiment: The experiment.
        data_dir: Where the data is.

    Returns:
        The split ``train`` for a trained network, else the one that batches are drawn from.

    Raises:
        DataNotFound: It is not there.
    """
    trained = experiment.training is not None and experiment.training.steps
    split = "train" if trained else experiment.data_split
    return cached_dataset(experiment.data, split, data_dir, experiment.image_size)


@lru_cache(maxsize=2)
def _network(
    network: Network, training: Training | None, dataset: Dataset, device: str
) -> nn.Module:
    return load_network(network, training, dataset).to(device).eval()


def _run(experiment: Experiment, index: int, data_dir: Path | str | None, device: str) -> Record:
    dataset = cached_dataset(
        experiment.data, experiment.data_split, data_dir, experiment.image_size
    )
    seed = partial(derive_seed, experiment.seed, index)
    network = experiment.network
    if network.seed == "per-trial":
        network = network.model_copy(update={"seed": seed("network")})
    model = _network(network, experiment.training, training_set(experiment, data_dir), device)
    batch = _Batch(
        dataset,
        _draw(experiment, dataset, seed("batch")),
        seed("crops") if dataset.lazy and experiment.batch.replacement else None,
        device,
    )
    sums = _class_sums(model) if experiment.of_ilrg else None
    observation = capture(model, batch.pieces()) if sums is None else _watch(model, batch, sums)
    shaped = replace(observation, input_shape=dataset.image_shape)
    wanted = _wanted(experiment, shaped)
    if Need.INPUT_SHAPE in wanted:
        observation = shaped
    if Need.GRADIENTS in wanted:
        observation = _with_whole_gradient(observation, model, batch)
    observation = _defend(experiment.defense, observation, batch, seed("defense"))
    true_counts = counts_of(dataset.labels[batch.indices], dataset.classes)
    if experiment.known_classes:
        present = true_counts.nonzero()[:, 0].to(device)
        observation = replace(observation, present_classes=present)
    outcomes = {}
    measures: dict[str, float] = {}
    for name in experiment.attacks:
        start = time.process_time()
        try:
            found = restore(observation, name, time_limit=experiment.time_limit)
        except LabelLeakError as error:
            outcomes[name] = _failed(error)
            continue
        seconds = time.process_time() - start
        outcomes[name] = _scored(found, true_counts)
        if name == "auto":
            outcomes[name]["spoke"] = found.attack
        measures |= _of_attack(experiment, name, found, true_counts, seconds)
        if experiment.batch.sampler == "imbalanced":
            outcomes[name]["predicted"] = _predicted(found)
        if name == "ilrg" and sums is not None:
            measures |= measure(experiment.of_ilrg, found, observation, sums.means())
    reconstruction: Record = {}
    if experiment.inversion is not None:
        truth = dataset.labels[batch.indices].to(device)
        scores, reconstruction = reconstruct(
            experiment, model, dataset, batch.inputs(), truth, seed("inversion"), index
        )
        measures |= scores
    return {
        "schema": TRIAL_SCHEMA,
        "key": experiment.trial_key(index),
        "experiment": experiment.name,
        "trial": index,
        "data": {
            "name": dataset.name,
            "stands_in_for": experiment.stands_in_for,
            "split": experiment.data_split,
        },
        "network": experiment.network.name,
        "classes": dataset.classes,
        "features": observation.head.features,
        "batch_size": experiment.batch.size,
        "attacks": outcomes,
        "measures": measures,
        **_baselines(experiment, true_counts, seed("baselines")),
        **reconstruction,
    }


def _wanted(experiment: Experiment, observation: Observation) -> set[Need]:
    """What the attacks can make use of; auto, of all that it does not cost too much to use."""
    names = {name for name in experiment.attacks if name != "auto"}
    wanted = {need for name in names for need in (*attacks()[name].needs, *attacks()[name].uses)}
    if "auto" in experiment.attacks:
        assert observation.model is not None, "capture leaves it there"
        layers = sum(isinstance(module, nn.Linear) for module in observation.model.modules())
        # Layers before the head tell `exact` and `calibrated` more.
        wanted |= {Need.INPUT_SHAPE, *([Need.GRADIENTS] if layers > 1 else [])}
    return wanted


def _draw(experiment: Experiment, dataset: Dataset, seed: int) -> Int64[Tensor, " batch"]:
    """Indices of the batch's samples, of those that the network was trained on if it was on any."""
    batch, training = experiment.batch, experiment.training
    some = training is not None and training.samples_per_class is not None
    if not some or experiment.data_split != "train":
        return draw(batch.sampler, dataset.labels, batch.size, seed, **batch.options)
    pool = training_samples(training, dataset)
    return pool[draw(batch.sampler, dataset.labels[pool], batch.size, seed, **batch.options)]


@dataclass(frozen=True)
class _Batch:
    """A batch that is made when asked for, the same each time."""

    dataset: Dataset
    indices: Int64[Tensor, " batch"]
    seed: int | None
    device: str

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, a few at a time."""
        _, height, width = self.dataset.image_shape
        chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_PIXELS // (height * width)))
        for inputs, labels in self.dataset.stream(self.indices, chunk, self._crops()):
            yield inputs.to(self.device), labels.to(self.device)

    def inputs(self) -> Tensor:
        """All inputs at once."""
        return self.dataset.batch(self.indices, self._crops())[0].to(self.device)

    def _crops(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


def _with_whole_gradient(observation: Observation, model: nn.Module, batch: _Batch) -> Observation:
    """The same with every parameter's gradient, of which the head's stay as captured."""
    gradients = whole_gradient(model, batch.pieces())
    name, gradient = observation.head.name, observation.gradient
    gradients[f"{name}.weight"] = gradient.weight
    if gradient.bias is not None:
        gradients[f"{name}.bias"] = gradient.bias
    return replace(observation, gradients=gradients)


def _class_sums(model: nn.Module) -> ClassSums:
    weight = model.get_parameter(f"{find_head(module_shapes(model))}.weight")
    classes, features = weight.shape
    return ClassSums(classes, features, weight.device)


def _watch(model: nn.Module, batch: _Batch, sums: ClassSums) -> Observation:
    """Capture, and look at embeddings and predictions as they pass."""
    passing: list[Tensor] = []

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in batch.pieces():
            passing[:] = [labels]
            yield inputs, labels

    def look(_: nn.Module, arguments: tuple[Tensor, ...], logits: Tensor) -> None:
        sums.add(arguments[0], logits, passing[0])

    handle = model.get_submodule(find_head(module_shapes(model))).register_forward_hook(look)
    try:
        return capture(model, pieces())
    finally:
        handle.remove()


def _defend(defense: Defense, observation: Observation, batch: _Batch, seed: int) -> Observation:
    if defense.name == "none":
        return observation
    return defenses.defend(observation, _defense(defense, observation, batch, seed))


def _defense(
    defense: Defense, observation: Observation, batch: _Batch, seed: int
) -> defenses.Defense:
    if defense.name == "sign":
        return defenses.sign
    value = defense.value
    assert value is not None, "the definition has been checked"
    generator = torch.Generator().manual_seed(seed)
    if defense.name == "gaussian_noise":
        return partial(defenses.gaussian_noise, std=value, generator=generator)
    if defense.name == "clip_norm":
        return partial(defenses.clip_norm, max_norm=value)
    if defense.name == "sparsify":
        return partial(defenses.sparsify, percent=value)
    if defense.name == "quantize":
        return partial(defenses.quantize, bits=int(value), generator=generator)
    model, head = observation.model, observation.head.name
    assert model is not None, "capture leaves it there"
    assert head is not None, "capture has found it"
    mask = defenses.soteria_mask(model, batch.inputs(), value, head)
    return partial(defenses.soteria, mask=mask, weight_name=f"{head}.weight")


def _scored(found: Restoration, true_counts: Tensor) -> Record:
    rounded = None
    if found.rounded is not None:
        rounded = score(found, true_counts, use="rounded").as_dict()
    return {
        "counts": score(found, true_counts).as_dict(),
        "rounded": rounded,
        "certified": found.certified,
        "flags": [flag.name.lower() for flag in found.flags],
        "error": None,
    }


def _of_attack(
    experiment: Experiment, name: str, found: Restoration, true_counts: Tensor, seconds: float
) -> dict[str, float]:
    """What is measured of every attack."""
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
        found = Restoration(name, present=counts > 0, counts=counts)
        scores[name] = score(found, true_counts).as_dict()
    return {"baselines": scores}


def _failed(error: LabelLeakError) -> Record:
    return {
        "counts": None, "rounded": None, "certified": False, "flags": [], "error": str(error)
    }  # fmt: skip


def _predicted(found: Restoration) -> dict[str, int]:
    counts = found.counts if found.rounded is None else found.rounded
    if counts is None:
        return {}
    return {str(label): int(counts[label]) for label in counts.nonzero()[:, 0].tolist()}
