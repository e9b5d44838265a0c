"""The tables and figures of iLRG (Ma et al., ICLR 2023) as experiments, at three scales."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from labelleak.errors import DataNotFound
from labelleak.lab.datasets import load
from labelleak.lab.datasets.loading import DATA_VARIABLE
from labelleak.lab.definition import (
    Activation,
    Batch,
    Defense,
    DefenseName,
    Definition,
    Experiment,
    Inversion,
    Measure,
    Network,
    Training,
)
from labelleak.lab.published import PublishedRow, find

Scale = Literal["smoke", "quick", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "paper")

_SCORES = ("ilrg.leacc", "ilrg.lnacc", "ilrg.irec", "ilrg.accuracy", "ilrg.exact")
_BASELINES = ("idlg.leacc", "gradinversion.leacc", "rlg.leacc")
_COSSIM = ("probability_cossim", "embedding_cossim")
_APPROXIMATIONS = (
    "a1_mse", "a1_mre", "a2_weight_mse", "a2_weight_mre", "a2_bias_mse", "a2_bias_mre", "a3_mse",
    "a3_mre", "embedding_mse", "embedding_cossim",
)  # fmt: skip
_SOTERIA = (
    "soteria_embedding_mse", "soteria_embedding_cossim", "embedding_mse", "embedding_cossim",
)  # fmt: skip
_PICTURES = ("psnr", "psnr_best6", "ssim", "ssim_best6", "lpips", "lpips_best6")
_ALL_ATTACKS = ("ilrg", "idlg", "gradinversion", "rlg")

_DATA_TITLES = {"mnist": "MNIST", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
_ACTIVATIONS: dict[Activation, str] = {
    "relu": "",
    "swish": " (Swish)",
    "leaky_relu": " (leaky ReLU)",
}
_DEFENSES: dict[str, DefenseName] = {"dp": "gaussian_noise", "sparse": "sparsify"}
_IMAGENET_SIDE = 224
_STAND_IN = "tiny-imagenet-100"
_SAMPLE = "mnist-sample"

# The logs of table 1 name the batches and what iDLG finds in them: of the initial weights, those of
# seed 13 alone fit. The logs of figure 3 have the same batches, and none of 1200 seeds fits.
_UNKNOWN_WEIGHTS = (
    "the published run has one network, of initial weights that are not known; here each trial has "
    "its own, which matters more than the batches do"
)
_ONE_NETWORK = (
    "one choice of initial weights (and one training): iLRG's LnAcc on an FCN differs by more than "
    "the interval from one to the next"
)

_SIX = (
    "one batch, and six images of it that its authors chose by eye; ours are the six of best PSNR"
)


@dataclass(frozen=True)
class Panel:
    """One set of axes of a figure.

    Attributes:
        key: By which rows name it.
        title: For a reader.
        x_title: What the horizontal axis shows, with its unit.
        x_scale: Kind of the horizontal axis.
        x_ticks: Where the published points are.
        metrics: Names of the metrics to draw.
        x_labels: What to write at the ticks, where it is not their numbers.
    """

    key: str
    title: str
    x_title: str
    x_scale: Literal["linear", "log2", "category"]
    x_ticks: tuple[float, ...]
    metrics: tuple[str, ...]
    x_labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class StudyRow:
    """One row of a table, or one point of a figure.

    Attributes:
        label: For a reader, unique in the study.
        experiment: What is run.
        published: The published runs to compare with; their figures are of different kinds.
        panel: Key of the panel it is a point of; None in a table.
        series: The curve it belongs to.
        x: Its place on the horizontal axis.
        stage: How far the network of the published run was trained, for a reader; None: as far as
            the experiment's.
        shrunk: In what the experiment is smaller than the published one, one text each.
        reason: Why its result may differ from the published one besides that; None: not known.
    """

    label: str
    experiment: Experiment
    published: tuple[PublishedRow, ...] = ()
    panel: str | None = None
    series: str | None = None
    x: float | None = None
    stage: str | None = None
    shrunk: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Study:
    """A table or a figure.

    Attributes:
        name: By which it is asked for.
        title: For a reader.
        source: Where the published figures are from.
        scale: The scale it is run at; None for a user's own grid.
        metrics: Names of the metrics to show, in order.
        rows: What is run.
        panels: The axes of a figure; none for a table.
        omitted: What the scale and the data at hand leave out, shrink or replace, one text each.
    """

    name: str
    title: str
    source: str
    scale: Scale | None
    metrics: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    panels: tuple[Panel, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def experiments(self) -> list[Experiment]:
        """The experiments of all rows, those that differ by nothing but their name once."""
        longest: dict[str, Experiment] = {}
        for row in self.rows:
            key = row.experiment.trial_key(0)
            if key not in longest or longest[key].trials < row.experiment.trials:
                longest[key] = row.experiment
        return list(longest.values())


@dataclass(frozen=True)
class Source:
    """Where the images for a published data set come from.

    Attributes:
        data: Name of the data set, see `labelleak.lab.datasets.names`.
        split: Split that batches are drawn from.
        replacement: Whether one image may be used several times, because there are few.
    """

    data: str
    split: Literal["train", "test"] = "train"
    replacement: bool = False


PUBLISHED_SOURCES: Mapping[str, Source | None] = MappingProxyType(
    {name: Source(name) for name in _DATA_TITLES}
)
"""The data sets of the paper themselves."""

_CANDIDATES: dict[str, tuple[Source, ...]] = {
    "mnist": (Source("mnist"), Source(_SAMPLE)),
    "cifar100": (Source("cifar100"), Source(_STAND_IN)),
    # Validation photographs alone are few per class: each is cropped at random.
    "imagenet": (Source("imagenet"), Source("imagenet", "test", replacement=True)),
}


def find_sources(data_dir: Path | None = None) -> Mapping[str, Source | None]:
    """What stands for each data set of the paper on this machine.

    Args:
        data_dir: Where to look, as in `labelleak.lab.datasets.load`.

    Returns:
        For each of ``mnist``, ``cifar100`` and ``imagenet`` the data set itself if it is there,
        else its stand-in (``mnist-sample``, ``tiny-imagenet-100``, and ImageNet's validation
        photographs cropped at random), else None.

    Raises:
        UnreadableFile: A data set is there, and broken.
    """
    root = data_dir or os.environ.get(DATA_VARIABLE)
    found = {}
    for name, candidates in _CANDIDATES.items():
        # Never downloaded unasked: it has 150 GB.
        known, place = (root is not None, root) if name == "imagenet" else (True, data_dir)
        there = (source for source in candidates if known and _is_there(source, place))
        found[name] = next(there, None)
    return found


def _is_there(source: Source, data_dir: Path | str | None) -> bool:
    try:
        load(source.data, split=source.split, data_dir=data_dir)
    except DataNotFound:
        return False
    return True


def study(
    name: str, scale: Scale, sources: Mapping[str, Source | None] = PUBLISHED_SOURCES
) -> Study:
    """A table or figure of the paper as experiments.

    Args:
        name: One of `names`.
        scale: ``paper``: the sizes of the paper. ``quick``: about an hour for all studies together
            on two cores. ``smoke``: a few minutes for all, on the embedded digits alone.
        sources: What to use for each data set of the paper, see `find_sources`; ``smoke`` needs
            none.

    Returns:
        The study; `Study.omitted` says how it differs from the published one.

    Raises:
        ValueError: No study of that name, or no such scale.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023; see `labelleak.lab.published`.
    """
    if name not in _STUDIES:
        raise ValueError(f"unknown study {name!r}: choose one of {', '.join(_STUDIES)}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    full = _STUDIES[name]()
    rows: list[StudyRow] = []
    reports: dict[str, list[str]] = {}
    for row in full.rows:
        fitted, texts = _fit(row, scale, sources)
        if fitted is not None:
            rows.append(fitted)
        for text in texts:
            reports.setdefault(text, []).append(row.label)
    omitted = tuple(
        f"{text} ({_which(labels, len(full.rows))})" for text, labels in reports.items()
    )
    return replace(full, scale=scale, rows=tuple(rows), omitted=omitted)


def names() -> tuple[str, ...]:
    """The names of the studies, in the order of the paper."""
    return tuple(_STUDIES)


def _which(labels: list[str], rows: int) -> str:
    if len(labels) == rows:
        return "all rows"
    return labels[0] if len(labels) == 1 else f"{len(labels)} of {rows} rows"


# From the paper's sizes to a scale's


def _fit(
    row: StudyRow, scale: Scale, sources: Mapping[str, Source | None]
) -> tuple[StudyRow | None, list[str]]:
    """The row at a scale with the data at hand, and how it differs; None where it is left out."""
    full = row.experiment
    if scale == "smoke":
        used, source = _smoke(full), Source(_SAMPLE)
    else:
        found = sources.get(full.data)
        if found is None:
            return None, [f"left out: there are no images for {_DATA_TITLES[full.data]}"]
        source = found
        used = _quick(full) if scale == "quick" else full
    used = _with_source(used, source)
    shrunk = _differences(full, used)
    replaced = [] if used.stands_in_for is None else [_stand_in_text(used)]
    if source.replacement:
        replaced.append("validation photographs cropped at random, a few of each class")
    return replace(row, experiment=used, shrunk=tuple(shrunk)), [*replaced, *shrunk]


def _stand_in_text(used: Experiment) -> str:
    return f"{used.data} stands in for {used.stands_in_for}"


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


_SMOKE_CLASSES = (0, 1, 9)


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
    """Fewer and smaller trials where a network takes long, and a shorter training."""
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
        steps = round(total * training.steps / training.total)
        training = _changed(
            training,
            unit="iterations",
            steps=steps,
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


# Iterations, and samples of each class: ten minutes in all, two cores. What hampers iLRG is a
# network that is sure of its samples, and in so few iterations it can become so of a few only
# (VGG-16 has learned 77 % of them).
_QUICK_TRAINING = {"vgg": (260, 20), "resnet": (100, 5)}
# Batches, and iterations of each inversion: minutes for FCN-3, an hour for ResNet-18, two cores.
_QUICK_INVERSIONS = {"fcn": (4, 8000), "resnet": (1, 500)}


def _differences(full: Experiment, used: Experiment) -> list[str]:
    """In what an experiment is smaller than the published one, the data set aside."""
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


# The paper's own sizes


def _experiment(
    published: PublishedRow,
    *,
    attacks: tuple[str, ...] = ("ilrg",),
    measures: tuple[Measure, ...] = (),
    inversion: Inversion | None = None,
    run: int = 0,
    fresh_weights: bool = False,
    **batch: Any,
) -> Experiment:
    """The experiment of a published run."""
    name, _, layer = published.model.partition("+")
    network = Network(
        name=name,
        activation=published.activation,
        batchnorm=True if layer == "batchnorm" else None,
        dropout=0.5 if layer == "dropout" else None,
    )
    if fresh_weights:
        network = _changed(network, seed="per-trial")
    samplers = {
        "random": "random",
        "extreme": "single_class",
        "random2": "random_classes",
        "unique": "unique",
        "balanced": "balanced",
        "custom_imbalanced": "imbalanced",
    }
    if published.defense is None:
        defense = Defense()
    else:
        defense = Defense(name=_DEFENSES[published.defense], value=published.defense_value)
    return Experiment(
        name=_label(published),
        data=published.dataset,
        image_size=_IMAGENET_SIDE if published.dataset == "imagenet" else None,
        network=network,
        training=_training(published.stage),
        batch=Batch(
            **{"sampler": samplers[published.distribution], "size": published.batch_size, **batch}
        ),
        defense=defense,
        attacks=attacks,
        known_classes=published.classes_known,
        measures=measures,
        inversion=inversion,
        trials=published.trials,
        seed=run,
    )


def _training(stage: str) -> Training | None:
    if stage == "untrained":
        return None
    if stage.startswith("iter"):
        return Training(unit="iterations", steps=int(stage.removeprefix("iter")), total=1000)
    return Training(unit="epochs", steps=int(stage.removeprefix("epoch")), total=100)


def stage_title(training: Training | None) -> str:
    """How far a network is trained, for a reader: ``untrained``, ``epoch 40``."""
    if training is None:
        return "untrained"
    return f"{training.unit.removesuffix('s')} {training.steps}"


def _network_title(name: str) -> str:
    """``FCN-3``, ``LeNet-5``, ``VGG-16 + dropout``."""
    base, _, layer = name.partition("+")
    family = base.rstrip("0123456789").rstrip("-")
    title = {"fcn": "FCN", "lenet": "LeNet", "vgg": "VGG", "resnet": "ResNet"}[family]
    extra = {"": "", "batchnorm": " with BatchNorm", "dropout": " with dropout"}[layer]
    return f"{title}-{base.removeprefix(family).lstrip('-')}{extra}"


def _label(published: PublishedRow, *more: str) -> str:
    parts = [
        f"{_network_title(published.model)}{_ACTIVATIONS[published.activation]} on "
        f"{_DATA_TITLES[published.dataset]}",
        stage_title(_training(published.stage)),
        f"K = {published.batch_size}",
        *more,
    ]
    return ", ".join(parts)


def _row(
    published: PublishedRow, *labels: str, more: tuple[PublishedRow, ...] = (), **fields: Any
) -> StudyRow:
    """A row that compares with a published run, and with others of the same setting."""
    own = ("panel", "series", "x", "reason")
    places = {name: fields.pop(name) for name in own if name in fields}
    label = _label(published, *labels)
    experiment = _changed(_experiment(published, **fields), name=label)
    stage = stage_title(_training(published.stage))
    return StudyRow(label, experiment, (published, *more), stage=stage, **places)


def _table1() -> Study:
    cossim = list(find("table1_cossim"))
    rows = []
    runs: dict[tuple[str, str, str], int] = {}
    for row in sorted(find("table1"), key=_place):
        setting = (row.dataset, row.model, row.activation)
        run = runs.get(setting, 0)
        runs[setting] = run + 1
        same = [c for c in cossim if (c.dataset, c.model, c.activation) == setting]
        cossim = [c for c in cossim if c not in same]
        rows.append(
            _row(
                row,
                *([f"run {run + 1}"] if run else []),
                more=tuple(same),
                attacks=_ALL_ATTACKS,
                measures=("cossim",),
                run=run,
                reason=_ONE_NETWORK if row.model == "fcn-3" else None,
            )
        )
    return Study(
        "table1",
        "Table 1: restored labels on untrained networks",
        "Ma et al., ICLR 2023, table 1 and the authors' public logs",
        None,
        (*_SCORES, *_BASELINES, *_COSSIM),
        tuple(rows),
    )


def _place(row: PublishedRow) -> tuple[int, int, int, int]:
    """The order of the paper: by data set, network, and activation."""
    return (
        list(_DATA_TITLES).index(row.dataset),
        ["fcn", "lenet", "vgg", "resnet"].index(_family(Network(name=row.model.partition("+")[0]))),
        list(_ACTIVATIONS).index(row.activation),
        row.line,
    )


def _steps(row: PublishedRow) -> int:
    training = _training(row.stage)
    return 0 if training is None else training.steps


def _figure2() -> Study:
    rows, panels = [], []
    for dataset, title, unit in (
        ("mnist", "FCN-3 on MNIST, K = 8", "iterations"),
        ("cifar100", "VGG-16 on CIFAR-100, K = 64", "epochs"),
    ):
        stages = sorted(find("figure2", dataset=dataset), key=_steps)
        panels.append(
            Panel(
                dataset,
                title,
                f"training ({unit})",
                "linear",
                tuple(float(_steps(row)) for row in stages),
                _SCORES[:3],
            )
        )
        rows += [
            _row(
                row,
                panel=dataset,
                series=_network_title(row.model),
                x=float(_steps(row)),
                reason=_ONE_NETWORK if dataset == "mnist" else None,
            )
            for row in stages
        ]
    return Study(
        "figure2",
        "Figure 2: stages of training",
        "Ma et al., ICLR 2023, figure 2 and the authors' public logs",
        None,
        _SCORES,
        tuple(rows),
        tuple(panels),
    )


def _depth(row: PublishedRow) -> int:
    return int("".join(letter for letter in row.model if letter.isdigit()))


def _figure3() -> Study:
    # Two of the runs are points of two panels, and published twice.
    fcn = sorted(find("figure3", dataset="mnist"), key=lambda row: (row.batch_size, row.line))
    twice = [row for row in fcn if row.model == "fcn-3" and row.batch_size == 64]
    fcn_batches = [row for row in fcn if row.model == "fcn-3" and row is not twice[1]]
    fcn_depths = sorted([r for r in fcn if r.model != "fcn-3"] + twice[1:], key=_depth)
    resnets = sorted(
        find("figure3", dataset="imagenet"), key=lambda row: (row.batch_size, row.line)
    )
    again = [row for row in resnets if row.model == "resnet50" and row.batch_size == 2048][1]
    resnet_batches = [row for row in resnets if row.model == "resnet50" and row is not again]
    resnet_depths = sorted([r for r in resnets if r.model != "resnet50"] + [again], key=_depth)
    cifar = find("figure3", dataset="cifar100")
    lenets = sorted((r for r in cifar if r.model == "lenet5"), key=lambda row: row.batch_size)
    vggs = sorted((r for r in cifar if r.model != "lenet5"), key=_depth)

    rows: list[StudyRow] = []
    panels: list[Panel] = []

    def add(key: str, title: str, series: str, members: Iterable[PublishedRow], by: str) -> None:
        members = list(members)
        xs = tuple(float(r.batch_size if by == "batch" else _depth(r)) for r in members)
        baselines = any("idlg_leacc" in r.figures for r in members)
        panels.append(
            Panel(
                key,
                title,
                "batch size K (instances)" if by == "batch" else "depth (layers)",
                "log2" if by == "batch" else "category",
                xs,
                (*_SCORES[:3], *(_BASELINES if baselines else ())),
            )
        )
        for row, x in zip(members, xs, strict=True):
            fcn = row.dataset == "mnist"
            label = ["depth"] if row is again or row is twice[1] else []
            rows.append(
                _row(
                    row,
                    *label,
                    panel=key,
                    series=series,
                    x=x,
                    attacks=_ALL_ATTACKS if baselines else ("ilrg",),
                    fresh_weights=fcn,
                    reason=_UNKNOWN_WEIGHTS if fcn else None,
                )
            )

    add("fcn-batch", "a: FCN-3 on MNIST", "FCN-3", fcn_batches, "batch")
    add("fcn-depth", "b: FCN on MNIST, K = 64", "FCN", fcn_depths, "depth")
    add("lenet-batch", "c: LeNet-5 on CIFAR-100", "LeNet-5", lenets, "batch")
    add("vgg-depth", "d: VGG on CIFAR-100, K = 1024", "VGG", vggs, "depth")
    add("resnet-batch", "e: ResNet-50 on ImageNet", "ResNet-50", resnet_batches, "batch")
    add("resnet-depth", "f: ResNet on ImageNet, K = 2048", "ResNet", resnet_depths, "depth")
    return Study(
        "figure3",
        "Figure 3: batch size and depth",
        "Ma et al., ICLR 2023, figure 3 and the authors' public logs",
        None,
        (*_SCORES, *_BASELINES),
        tuple(rows),
        tuple(panels),
    )


def _analysis_rows(table: str) -> list[StudyRow]:
    """Rows of tables 3 and 4, which show different measures of the same batches."""
    printed = {row.stage: row for row in find(table)}
    logged = {row.stage: row for row in find("table3+table4")} if table == "table3" else {}
    return [
        _row(
            printed[stage],
            more=(logged[stage],) if stage in logged else (),
            measures=("cossim", "approximations", "soteria_embedding"),
        )
        for stage in ("untrained", "epoch40", "epoch100")
    ]


def _table3() -> Study:
    return Study(
        "table3",
        "Table 3: errors of the approximations",
        "Ma et al., ICLR 2023, table 3",
        None,
        (*_APPROXIMATIONS, "probability_cossim", *_SCORES),
        tuple(_analysis_rows("table3")),
    )


def _table4() -> Study:
    return Study(
        "table4",
        "Table 4: class embeddings restored by Soteria's rule and by iLRG",
        "Ma et al., ICLR 2023, table 4",
        None,
        _SOTERIA,
        tuple(_analysis_rows("table4")),
    )


TABLE5_CLASSES = (0, 18, 92)


def _table5() -> Study:
    rows = sorted(find("table5"), key=lambda row: (_steps(row), row.batch_size))
    return Study(
        "table5",
        "Table 5: three classes of 1, K - 2 and 1 instances",
        "Ma et al., ICLR 2023, table 5 and the authors' public logs",
        None,
        (*(f"ilrg.instances_{label}" for label in TABLE5_CLASSES), *_SCORES),
        tuple(
            # No class of CIFAR-100 has 646 training images: the published runs use some twice, too.
            _row(row, classes=TABLE5_CLASSES, replacement=row.batch_size > 500)
            for row in rows
        ),
    )


def _figure5() -> Study:
    published = find("figure5")
    rows: list[StudyRow] = []
    panels = []
    for defense, title, x_title in (
        ("dp", "Gaussian noise", "standard deviation of the noise (unit of the gradient)"),
        ("sparse", "Sparsification", "entries set to zero (% of each tensor)"),
    ):
        values = sorted({row.defense_value or 0 for row in published if row.defense == defense})
        panels.append(
            Panel(
                defense,
                f"{title}, ResNet-18 on CIFAR-100, K = 24",
                x_title,
                "category",
                tuple(float(place) for place in range(len(values) + 1)),
                _SCORES[:3],
                ("none", *(f"{value:g}" for value in values)),
            )
        )
        for stage in ("untrained", "epoch100"):
            # The runs without a defence are where both curves start.
            curve = [
                row for row in published if row.stage == stage and row.defense in (None, defense)
            ]
            for row in sorted(curve, key=lambda row: row.defense_value or 0):
                x = 0 if row.defense is None else values.index(row.defense_value or 0) + 1
                rows.append(
                    _row(
                        row,
                        f"{title.lower()} {row.defense_value:g}"
                        if row.defense
                        else f"no {title.lower()}",
                        panel=defense,
                        series=stage_title(_training(stage)),
                        x=float(x),
                    )
                )
    return Study(
        "figure5",
        "Figure 5: defences",
        "Ma et al., ICLR 2023, figure 5 and the authors' public logs",
        None,
        _SCORES,
        tuple(rows),
        tuple(panels),
    )


# What is known of the labels, and the attack that restores them.
_LABELS: dict[str, tuple[Literal["shared", "free", "restored", "given"], str]] = {
    "free, one soft label for the batch (the published baseline)": ("shared", "ilrg"),
    "free, one soft label for each image": ("free", "ilrg"),
    "restored by iLRG": ("restored", "ilrg"),
    "restored by calibrated": ("restored", "calibrated"),
    "true": ("given", "ilrg"),
}


def _figure4() -> Study:
    # As in the authors' logs and README; their ResNet-18 took 240,000 iterations, their FCN-3 the
    # default of their code.
    settings: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("mnist", {"iterations": 8000, "restarts": 3, "total_variation": 1e-4}, {}),
        ("cifar100", {"iterations": 240_000, "total_variation": 8e-3}, {"num_classes": 10}),
    )
    rows = []
    for dataset, options, batch in settings:
        # One log for the labels free, one for the labels restored, which scores iLRG both times.
        logs = dict(zip(("shared", "restored"), find("figure4", dataset=dataset), strict=True))
        for title, (labels, attack) in _LABELS.items():
            if attack == "calibrated" and dataset != "mnist":
                # iLRG restores sixteen labels of a hundred classes without it.
                continue
            base = find("figure4_restored", dataset=dataset)[0]
            own = find(f"figure4_{labels}", dataset=dataset)
            if attack == "calibrated":
                own = ()
            elif labels in logs:
                own = (*own, logs[labels])
            label = _label(base, f"labels {title}")
            experiment = _changed(
                _experiment(base, inversion=Inversion(labels=labels, **options), **batch),
                name=label,
                attacks=(attack,),
            )
            rows.append(StudyRow(label, experiment, own, stage="untrained", reason=_SIX))
    return Study(
        "figure4",
        "Figure 4: images from gradients, with labels free, restored and true",
        "Ma et al., ICLR 2023, figure 4",
        None,
        (*_PICTURES, *_SCORES),
        tuple(rows),
    )


_BALANCED_CLASSES = (64, 32, 16, 8, 4, 2)


def _extras() -> Study:
    rows = [
        _row(row, measures=("cossim",), reason=_ONE_NETWORK if row.model == "fcn-3" else None)
        for row in sorted(find("extra_trained"), key=lambda row: (*_place(row)[:2], _steps(row)))
    ]
    rows += [_row(row) for row in find("extra_batchnorm_dropout")]
    distributions = find("extra_distributions")
    rows += [_row(row, "unique") for row in distributions if row.distribution == "unique"]
    rows += [_row(row, "one class") for row in distributions if row.distribution == "extreme"]
    # The logs say of how many classes: the figures are the same for all.
    balanced = [row for row in distributions if row.distribution == "balanced"]
    rows += [
        _row(
            row,
            f"{number} classes",
            num_classes=number,
        )
        for row, number in zip(balanced, _BALANCED_CLASSES, strict=True)
    ]
    rows += _unpublished()
    return Study(
        "extras",
        "Further runs: other batches, trained networks, BatchNorm, dropout, known classes",
        "the authors' public logs of Ma et al., ICLR 2023",
        None,
        (*_SCORES, *_COSSIM),
        tuple(rows),
    )


def _unpublished() -> list[StudyRow]:
    """Known classes and two more defences: rows without a published figure."""
    fcn = find("table1", model="fcn-3")[0]
    lenet = find("figure3", model="lenet5", batch_size=128)[0]
    trained = find("extra_trained", model="vgg16", stage="epoch100")[0]
    settings: tuple[tuple[PublishedRow, str, dict[str, Any]], ...] = (
        (fcn, "known classes", {"known_classes": True}),
        (lenet, "known classes", {"known_classes": True}),
        (trained, "known classes", {"known_classes": True}),
        (lenet, "norm clipped to 0.1", {"defense": Defense(name="clip_norm", value=0.1)}),
        (lenet, "Soteria 10", {"defense": Defense(name="soteria", value=10)}),
    )
    rows = []
    for row, what, fields in settings:
        label = _label(row, what)
        experiment = _changed(_experiment(row), name=label, **fields)
        rows.append(StudyRow(label, experiment, stage=stage_title(experiment.training)))
    return rows


_STUDIES: dict[str, Callable[[], Study]] = {
    "table1": _table1,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
    "extras": _extras,
}
