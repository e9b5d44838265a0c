"""From the paper's sizes to those of a scale, and what that changes."""

from collections.abc import Mapping
from typing import Any, TypeVar

from labelleak.lab.definition import Experiment, Network, Training
from labelleak.lab.fields import Definition
from labelleak.lab.sources import SAMPLE, Source
from labelleak.lab.study import Scale, StudyRow

_DATA_TITLES = {"mnist": "MNIST", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}

# Family -> iterations, and samples of each class: ten minutes in all on two cores. iLRG fails on a
# network that is sure of its samples, and few iterations suffice for that with few samples only
# (VGG-16 then classifies 77 % of them correctly).
_QUICK_TRAINING = {"vgg": (260, 20), "resnet": (100, 5)}
# Family -> batches, and iterations of each inversion: minutes for FCN-3, an hour for ResNet-18 on
# two cores.
_QUICK_INVERSIONS = {"fcn": (4, 8000), "resnet": (1, 500)}
_SMOKE_CLASSES = (0, 1, 9)


def at_scale(
    row: StudyRow, scale: Scale, sources: Mapping[str, Source | None]
) -> tuple[StudyRow | None, list[str]]:
    """A row at a scale, with the data sets that are available.

    Args:
        row: The row at the sizes of the paper.
        scale: The scale.
        sources: The source for each data set of the paper; ``smoke`` needs none.

    Returns:
        The row, or None where there are no images for it; and how it differs from the published
        one, one text each.
    """
    full = row.experiment
    if scale == "smoke":
        used, source = _smoke(full), SAMPLE
    else:
        found = sources.get(full.data)
        if found is None:
            return None, [f"left out: there are no images for {_DATA_TITLES[full.data]}"]
        source = found
        used = _quick(full) if scale == "quick" else full
    used = _with_source(used, source)
    shrunk = _differences(full, used)
    replaced = []
    if used.stands_in_for is not None:
        replaced.append(f"{used.data} stands in for {used.stands_in_for}")
    if source.replacement:
        replaced.append("validation photographs cropped at random, a few of each class")
    fitted = row.model_copy(update={"experiment": used, "shrunk": tuple(shrunk)})
    return fitted, [*replaced, *shrunk]


def _with_source(experiment: Experiment, source: Source) -> Experiment:
    replacement = experiment.batch.replacement or source.replacement
    return _changed(
        experiment,
        data=source.data,
        data_split=source.split,
        stands_in_for=experiment.data if source.data != experiment.data else None,
        batch=_changed(experiment.batch, replacement=replacement),
    )


DefinitionType = TypeVar("DefinitionType", bound=Definition)


def _changed(definition: DefinitionType, **fields: Any) -> DefinitionType:
    """A copy with other fields, validated as a new one is."""
    return type(definition).model_validate({**dict(definition), **fields})


def _family(network: Network) -> str:
    return network.name.rstrip("0123456789").rstrip("-")


def _smoke(experiment: Experiment) -> Experiment:
    """Three small batches, on networks that take 28 x 28 pixels and ten classes."""
    network, batch, training = experiment.network, experiment.batch, experiment.training
    inversion, trials = experiment.inversion, 3
    if inversion is not None:
        iterations = 60 if _family(network) == "fcn" else 4
        inversion, trials = _changed(inversion, iterations=iterations, restarts=1), 1
    if _family(network) == "vgg":
        network = Network(name="lenet5")
    elif _family(network) == "resnet":
        network = Network(name="resnet18", stem="imagenet")
    changes: dict[str, Any] = {"size": min(batch.size, 128 if _family(network) == "fcn" else 32)}
    if batch.sampler == "unique":
        changes["size"] = 10
    if batch.num_classes is not None:
        changes["num_classes"] = min(batch.num_classes, 5)
    if batch.classes is not None:
        changes["classes"] = _SMOKE_CLASSES
    if training is not None:
        steps = max(1, round(20 * training.steps / training.total))
        training = _changed(training, unit="iterations", steps=steps, total=20, batch_size=32)
    return _changed(
        experiment,
        network=network,
        batch=_changed(batch, **changes),
        training=training,
        inversion=inversion,
        image_size=None,
        trials=trials,
    )


def _quick(experiment: Experiment) -> Experiment:
    """Fewer and smaller trials of slow networks, and a shorter training."""
    family, batch, training = _family(experiment.network), experiment.batch, experiment.training
    trials, size = experiment.trials, experiment.image_size
    if experiment.data == "imagenet":
        # A ResNet-50 without pooling takes 65 billion multiplications for 224 x 224 pixels.
        size = 32 if batch.size > 64 else 64
        trials = 10 if batch.size <= 64 else 2
    elif family == "vgg":
        trials = 5 if batch.size >= 1024 else 10 if batch.size >= 216 else 20
    elif family == "resnet":
        trials = 20
    inversion = experiment.inversion
    if inversion is not None:
        trials, iterations = _QUICK_INVERSIONS[family]
        inversion = _changed(inversion, iterations=iterations, restarts=1)
    if training is not None and family in _QUICK_TRAINING:
        total, samples = _QUICK_TRAINING[family]
        training = _changed(
            training,
            unit="iterations",
            steps=round(total * training.steps / training.total),
            total=total,
            samples_per_class=samples,
        )
        if batch.sampler == "imbalanced" and batch.size > samples:
            batch = _changed(batch, replacement=True)
    return _changed(
        experiment,
        trials=trials if inversion is not None else min(trials, experiment.trials),
        image_size=size,
        training=training,
        batch=batch,
        inversion=inversion,
    )


def _differences(full: Experiment, used: Experiment) -> list[str]:
    """How an experiment is smaller than the published one, the data set aside."""
    texts = []
    if used.network.name != full.network.name:
        texts.append(f"network {used.network.name} instead of {full.network.name}")
    elif used.network.stem != full.network.stem:
        texts.append("ResNet-18 with the stem of ImageNet")
    if used.batch.size != full.batch.size:
        texts.append(f"batch size {used.batch.size} instead of {full.batch.size}")
    if used.batch.num_classes != full.batch.num_classes:
        texts.append(f"{used.batch.num_classes} classes instead of {full.batch.num_classes}")
    if used.batch.classes != full.batch.classes:
        texts.append(f"classes {used.batch.classes} instead of {full.batch.classes}")
    if used.batch.replacement and not full.batch.replacement:
        texts.append("images used several times")
    if used.image_size != full.image_size:
        texts.append(f"images of {used.image_size or 28} pixels instead of {full.image_size}")
    if full.training is not None and used.training is not None and used.training != full.training:
        texts.append(f"trained for {_length(used.training)} instead of {_length(full.training)}")
    if full.inversion is not None and used.inversion is not None:
        texts += [
            f"{getattr(used.inversion, name)} {name} instead of {getattr(full.inversion, name)}"
            for name in ("iterations", "restarts")
            if getattr(used.inversion, name) != getattr(full.inversion, name)
        ]
    if used.trials != full.trials:
        texts.append(f"{used.trials} trials instead of {full.trials}")
    return texts


def _length(training: Training) -> str:
    text = f"{training.total} {training.unit} of {training.batch_size} samples"
    if training.unit == "epochs":
        text = f"{training.total} epochs"
    if training.samples_per_class is not None:
        text += f" (of {training.samples_per_class} of each class)"
    return text
