"""From the records of a study to its summary: means, intervals, and how far off the published are.

A summary is plain data, which the report renders::

    {
      "schema": "labelleak/study/1",
      "name": "table1", "title": ..., "source": ..., "scale": "quick",
      "interval": "95 % of the mean over trials ...",
      "metrics": [{"name": "ilrg.leacc", "attack": "ilrg", "title": "iLRG LeAcc",
                   "description": ..., "bounds": [0, 1]}, ...],
      "panels": [{"key", "title", "x_title", "x_scale", "x_ticks", "x_labels", "metrics"}, ...],
      "rows": [{
        "label": "FCN-3 on MNIST, untrained, K = 24",
        "data": "mnist", "stands_in_for": null, "split": "train", "image_size": null,
        "network": "fcn-3", "activation": "relu", "batchnorm": null, "dropout": null, "stem": null,
        "stage": "untrained",           # of the published run
        "stage_used": "untrained",      # of ours
        "batch_size": 24, "sampler": "random", "defense": null, "known_classes": false,
        "trials": 50, "trials_planned": 50,
        "panel": null, "series": null, "x": null,
        "metrics": {"ilrg.lnacc": {
          "ours": 0.992, "low": 0.984, "high": 1.0,   # null where no trial has it, or just one
          "published": 0.994, "difference": -0.002, "inside": true, "trials": 50}, ...},
        "failed": {"rlg": {"failed": 3, "of": 50, "error": ...}},
        "inversion": null,              # how images were sought for: labels, iterations, restarts
        "pictures": null,               # of the first trial, see `labelleak.lab.pictures`
        "local": "10 local steps, learning rate 0.05",  # rows with local training only
        "auxiliary": 500,               # rows with auxiliary data only: samples of each class
        "spoke": {"exact": 20},         # rows with the attack auto only: how often each spoke
        "shrunk": ["10 trials instead of 50"],
        "note": null                    # why published figures are outside the interval
      }, ...],
      "omitted": ["tiny-imagenet-100 stands in for cifar100 (...)", ...],
      "environment": {"labelleak", "python", "torch", "platform", "cores", "gpu"}
    }
"""

import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats

from labelleak._version import __version__
from labelleak.lab.definition import Defense, Experiment
from labelleak.lab.paper import TABLE5_CLASSES, Study, StudyRow, stage_title
from labelleak.lab.published import PublishedRow

SUMMARY_SCHEMA = "labelleak/study/1"
"""Name and version of a summary."""

INTERVAL = (
    "95 % interval of the mean over trials: Student's t, cut off at the bounds of the metric; it "
    "covers the choice of the batches, and that of the initial weights only where each trial has "
    "its own"
)
_CONFIDENCE = 0.95

Record = Mapping[str, Any]
"""One line of a run's records, see `labelleak.lab.trial`."""


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        name: By which studies name it.
        title: Short, for a heading.
        description: What it is.
        bounds: Smallest and largest value there can be; None for no limit.
        attack: The attack or the baseline that it scores; None for a measure of the batch.
        part: Of the record: of the attack's, ``rounded`` for the counts as published, before their
            sum is repaired, ``counts``, ``predicted`` or ``outcome``; of the whole, ``measures`` or
            ``baselines``.
        field: Name in the record.
        published: Name of the published figure; None where there is none.
    """

    name: str
    title: str
    description: str
    bounds: tuple[float, float | None]
    attack: str | None
    part: str
    field: str
    published: str | None


_ATTACK_TITLES = {"ilrg": "iLRG", "idlg": "iDLG", "gradinversion": "GI", "rlg": "RLG"}
_PUBLISHED_LEACC = {
    "ilrg": "leacc",
    "idlg": "idlg_leacc",
    "gradinversion": "gi_leacc",
    "rlg": "rlg_leacc",
}
# Short name -> title, description, part of the record, field, what is published of iLRG.
_SCORES: dict[str, tuple[str, str, str, str, str | None]] = {
    "leacc": ("LeAcc", "classes rightly told present or absent", "rounded", "leacc", "leacc"),
    "lnacc": ("LnAcc", "classes with the right number of instances", "rounded", "lnacc", "lnacc"),
    "irec": (
        "IRec",
        "instances restored, of counts whose sum is free",
        "rounded",
        "recall",
        "irec",
    ),
    "accuracy": (
        "accuracy",
        "instances restored, of counts that sum to K",
        "counts",
        "accuracy",
        None,
    ),
    "exact": ("exact", "batches with every count right", "counts", "exact", None),
}
# The same of what every attack may be asked for besides, and the largest value.
_FURTHER: dict[str, tuple[str, str, str, float | None]] = {
    "certified": ("certified", "batches whose counts are proven", "outcome", 1.0),
    "coverage": ("coverage", "true counts inside the attack's 95 % intervals", "measures", 1.0),
    "seconds": ("seconds", "time of one processor", "measures", None),
}
_BASELINES = {
    "uniform": ("uniform", "as many of each class"),
    "absent": ("all absent", "no class is there"),
    "shuffled": ("shuffled", "the true numbers, dealt out at random"),
}
_BASELINE_SCORES = ("leacc", "lnacc", "accuracy", "exact")
_IMAGE_SCORES = {"psnr": "PSNR (dB, peak 1)", "ssim": "SSIM", "lpips": "LPIPS (VGG)"}
_MEASURES = {
    "probability_cossim": "CosSim of the restored class probabilities",
    "embedding_cossim": "CosSim of the restored class embeddings",
    "embedding_mse": "MSE of the restored class embeddings",
    **{
        f"{name}{suffix}": f"{title}, mean over {over}"
        for name, title in _IMAGE_SCORES.items()
        for suffix, over in (("", "the batch"), ("_best6", "its six best images"))
    },
    "soteria_embedding_cossim": "CosSim of the gradient's rows and the class embeddings (Soteria)",
    "soteria_embedding_mse": "MSE of the gradient's rows and the class embeddings (Soteria)",
    **{
        f"{name}_{error.lower()}": f"{error} of approximation {what}"
        for name, what in (
            ("a1", "1"),
            ("a2_weight", "2, weights"),
            ("a2_bias", "2, bias"),
            ("a3", "3"),
        )
        for error in ("MSE", "MRE")
    },
}


def metric(name: str) -> Metric:
    """A metric by its name.

    Args:
        name: ``ATTACK.leacc``, ``.lnacc``, ``.irec``, ``.accuracy``, ``.exact``, ``.certified``,
            ``.coverage`` or ``.seconds`` for any attack (the first five for a baseline, too),
            ``ilrg.instances_C`` for the published class C of table 5, or a measure such as
            ``a1_mse``.

    Returns:
        The metric.

    Raises:
        ValueError: There is none of that name.
    """
    if name in _MEASURES:
        low = -1.0 if name.endswith("cossim") or name.startswith("ssim") else 0.0
        high = 1.0 if name.endswith("cossim") or name.startswith("ssim") else None
        title = _MEASURES[name]
        return Metric(name, title, title, (low, high), None, "measures", name, name)
    attack, _, field = name.partition(".")
    title = _ATTACK_TITLES.get(attack, attack)
    if field.startswith("instances_"):
        label = field.removeprefix("instances_")
        text = f"mean restored number of instances of class {label}"
        heading = f"{title} class {label}"
        return Metric(name, heading, text, (0.0, None), attack, "predicted", label, field)
    if attack and field in _FURTHER:
        heading, text, part, most = _FURTHER[field]
        key = name if part == "measures" else field
        return Metric(name, f"{title} {heading}", text, (0.0, most), attack, part, key, None)
    if attack in _BASELINES and field in _SCORES:
        heading, text, _, key, _ = _SCORES[field]
        title, what = _BASELINES[attack]
        text = f"{text}; baseline: {what}"
        return Metric(name, f"{title} {heading}", text, (0.0, 1.0), attack, "baselines", key, None)
    if not attack or field not in _SCORES:
        raise ValueError(f"there is no metric {name!r}")
    heading, text, part, key, published = _SCORES[field]
    if field == "leacc":
        published = _PUBLISHED_LEACC.get(attack)
    elif attack != "ilrg":
        published = None
    return Metric(name, f"{title} {heading}", text, (0.0, 1.0), attack, part, key, published)


def grid_study(experiments: Sequence[Experiment], name: str, title: str) -> Study:
    """A user's own experiments as a study without published figures.

    Args:
        experiments: With names of their own.
        name: Of the study.
        title: Of the study, for a reader.

    Returns:
        One row per experiment, with the scores of all attacks and the measures asked for.
    """
    attacks = dict.fromkeys(attack for e in experiments for attack in e.attacks)
    measures = {measure for e in experiments for measure in e.measures}
    names = [f"{attack}.{field}" for attack in attacks for field in _SCORES]
    proving = [attack for attack in ("auto", "exact") if attack in attacks]
    names += [f"{attack}.certified" for attack in proving]
    for field in ("coverage", "seconds"):
        names += [f"{attack}.{field}" for attack in attacks if field in measures]
    baselines = dict.fromkeys(name for e in experiments for name in e.baselines)
    names += [f"{name}.{field}" for name in baselines for field in _BASELINE_SCORES]
    if "cossim" in measures:
        names += ["probability_cossim", "embedding_cossim"]
    if "approximations" in measures:
        names += [n for n in _MEASURES if n[0] == "a"] + ["embedding_mse", "embedding_cossim"]
    if "soteria_embedding" in measures:
        names += ["soteria_embedding_mse", "soteria_embedding_cossim"]
    if any(e.inversion is not None for e in experiments):
        names += [f"{name}{suffix}" for name in _IMAGE_SCORES for suffix in ("", "_best6")]
    rows = tuple(StudyRow(e.name, e) for e in experiments)
    return Study(name, title, "", None, tuple(dict.fromkeys(names)), rows)


def summarise(study: Study, records: Iterable[Record]) -> dict[str, Any]:
    """The summary of a study.

    Args:
        study: What was to be run.
        records: Records of trials, in any order, those of other experiments among them; trials
            without one are not counted.

    Returns:
        Plain data, see this module's description.
    """
    by_key = {record["key"]: record for record in records}
    metrics = [metric(name) for name in study.metrics]
    return {
        "schema": SUMMARY_SCHEMA,
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "scale": study.scale,
        "interval": INTERVAL,
        "metrics": [
            {
                "name": m.name,
                "attack": m.attack,
                "title": m.title,
                "description": m.description,
                "bounds": list(m.bounds),
            }
            for m in metrics
        ],
        "panels": [
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(panel).items()}
            for panel in study.panels
        ],
        "rows": [_row(row, metrics, by_key) for row in study.rows],
        "omitted": list(study.omitted),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """What the run ran on, as it belongs into a summary.

    Returns:
        Versions of labelleak, Python and PyTorch, the platform, the number of CPU cores, and the
        name of the GPU or None.
    """
    return {
        "labelleak": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _row(row: StudyRow, metrics: Sequence[Metric], by_key: Mapping[str, Record]) -> dict[str, Any]:
    experiment = row.experiment
    keys = (experiment.trial_key(index) for index in range(experiment.trials))
    records = [by_key[key] for key in keys if key in by_key]
    cells = {m.name: cell for m in metrics if (cell := _cell(m, row, records)) is not None}
    network = experiment.network
    return {
        "label": row.label,
        "data": experiment.data,
        "stands_in_for": experiment.stands_in_for,
        "split": experiment.data_split,
        "image_size": experiment.image_size,
        "network": network.name,
        "activation": network.activation,
        "batchnorm": network.batchnorm,
        "dropout": network.dropout,
        "stem": network.stem,
        "stage": row.stage or stage_title(experiment.training),
        "stage_used": _stage_used(experiment),
        "batch_size": experiment.batch.size,
        "sampler": experiment.batch.sampler,
        "defense": _defense_title(experiment.defense),
        "known_classes": experiment.known_classes,
        "trials": len(records),
        "trials_planned": experiment.trials,
        "panel": row.panel,
        "series": row.series,
        "x": row.x,
        "metrics": cells,
        "failed": _failures(experiment, records),
        "inversion": None if experiment.inversion is None else experiment.inversion.model_dump(),
        "pictures": next((r["pictures"] for r in records if "pictures" in r), None),
        **_beyond_one_batch(experiment),
        **_spoke(experiment, records),
        "shrunk": list(row.shrunk),
        "note": _note(row, metrics, cells),
    }


def _beyond_one_batch(experiment: Experiment) -> dict[str, Any]:
    """Local training and the server's own data, where there are any."""
    found: dict[str, Any] = {}
    local = experiment.local
    if local is not None:
        epochs = f" in {local.epochs} epochs" if local.epochs > 1 else ""
        found["local"] = f"{local.steps} local steps{epochs}, learning rate {local.learning_rate:g}"
        for what in ("momentum", "weight_decay", "proximal"):
            if value := getattr(local, what):
                found["local"] += f", {what.replace('_', ' ')} {value:g}"
    if experiment.auxiliary_per_class is not None:
        found["auxiliary"] = experiment.auxiliary_per_class
    return found


def _spoke(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    """How often each attack spoke for auto, the most frequent first."""
    if "auto" not in experiment.attacks:
        return {}
    names = [record["attacks"]["auto"].get("spoke") for record in records]
    counted = Counter(name for name in names if name is not None)
    return {"spoke": dict(counted.most_common())}


def _stage_used(experiment: Experiment) -> str:
    training = experiment.training
    if training is None:
        fresh = experiment.network.seed == "per-trial"
        return "untrained, other weights in each trial" if fresh else "untrained"
    text = f"{stage_title(training)} of {training.total}"
    if training.samples_per_class is not None:
        text += f", {training.samples_per_class} samples of each class"
    return text


def _defense_title(defense: Defense) -> str | None:
    if defense.name == "none":
        return None
    value = "" if defense.value is None else f" {defense.value:g}"
    return defense.name.replace("_", " ") + value


def _cell(m: Metric, row: StudyRow, records: Sequence[Record]) -> dict[str, Any] | None:
    """One metric of one row; None where nothing was run for it and nothing published."""
    value, published = _published(m, row.published)
    run = (*row.experiment.attacks, *row.experiment.baselines)
    if m.attack is not None and m.attack not in run and value is None:
        return None
    values = [v for r in records if (v := _value(m, row.experiment, r)) is not None]
    if not values and value is None:
        return None
    ours, low, high = _mean_and_interval(values, m.bounds)
    inside = None
    if published is not None and low is not None and high is not None:
        inside = low <= published[1] and published[0] <= high
    return {
        "ours": ours,
        "low": low,
        "high": high,
        "published": value,
        "difference": None if ours is None or value is None else ours - value,
        "inside": inside,
        "trials": len(values),
    }


def _published(
    m: Metric, rows: Sequence[PublishedRow]
) -> tuple[float | None, tuple[float, float] | None]:
    """The published figure, and what it may have been before it was printed."""
    for row in rows:
        if m.published is not None and m.published in row.figures:
            return row.figures[m.published], row.spread(m.published)
    return None, None


def _value(m: Metric, experiment: Experiment, record: Record) -> float | None:
    if m.attack is None or m.part == "measures":
        value = record["measures"].get(m.field)
        return None if value is None else float(value)
    if m.part == "baselines":
        return float(record["baselines"][m.attack][m.field])
    entry = record["attacks"].get(m.attack)
    if entry is None or entry["error"] is not None:
        return None
    if m.part == "outcome":
        return float(entry[m.field])
    if m.part == "predicted":
        classes = experiment.batch.classes
        counts = entry.get("predicted")
        if classes is None or counts is None:
            return None
        # Where other classes take the place of the published ones, in the same order.
        label = classes[TABLE5_CLASSES.index(int(m.field))]
        return float(counts.get(str(label), 0))
    scores = entry[m.part] or entry["counts"]
    value = None if scores is None else scores[m.field]
    return None if value is None else float(value)


def _mean_and_interval(
    values: Sequence[float], bounds: tuple[float, float | None]
) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    high = math.inf if bounds[1] is None else bounds[1]
    return mean, max(mean - half, bounds[0]), min(mean + half, high)


def _failures(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    failures = {}
    for attack in experiment.attacks:
        errors = [
            error for record in records if (error := record["attacks"][attack]["error"]) is not None
        ]
        if errors:
            failures[attack] = {"failed": len(errors), "of": len(records), "error": errors[0]}
    return failures


def _note(
    row: StudyRow, metrics: Sequence[Metric], cells: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Which published figures are outside the interval, and what may be the reason."""
    outside = [m for m in metrics if m.name in cells and cells[m.name]["inside"] is False]
    if not outside:
        return None
    reasons = []
    if row.experiment.stands_in_for is not None:
        reasons.append(f"{row.experiment.data} stands in for {row.experiment.stands_in_for}")
    if row.experiment.data_split != "train":
        reasons.append("held-out images, a few of each class, cropped at random")
    reasons += [text for text in row.shrunk if "trials instead of" not in text]
    reasoned = [m for m in outside if m.attack == "ilrg" or m.name.split("_")[0] in _IMAGE_SCORES]
    if row.reason is not None and reasoned:
        reasons.append(row.reason)
    if any(m.attack == "rlg" for m in outside):
        reasons.append(
            "another definition of RLG: the authors' is not exactly the original, and this one "
            "takes the number of present classes from the rank of the gradient"
        )
    titles = ", ".join(m.title for m in outside)
    # None of these has been shown to be the reason.
    because = "possible reasons: " + "; ".join(reasons) if reasons else "the reason is not known"
    return f"{titles}: published outside the interval; {because}"
