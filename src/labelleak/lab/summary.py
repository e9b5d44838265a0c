"""The summary of a study: means over its records, intervals, and differences to what is published.

A summary is plain data that the report renders::

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
        "stage_used": "untrained",      # of this run
        "batch_size": 24, "sampler": "random", "defense": null, "known_classes": false,
        "trials": 50, "trials_planned": 50,
        "earlier": 0,                   # how many of them other code than this one has made
        "found": 12,                    # only if any: how many of them were there before this run
        "plugins": {"mine": "my-attack 0.1.0"},  # only if any: where other code than ours is from
        "code": ["0b7d..."],            # hashes of the code that made them
        "range": "evaluation",          # of samples and seeds
        "panel": null, "series": null, "x": null,
        "metrics": {"ilrg.lnacc": {
          "ours": 0.992, "low": 0.984, "high": 1.0,   # null without a trial; one has no interval
          "error": 0.004,                             # standard error of the mean; null likewise
          "published": 0.994, "difference": -0.002, "inside": true, "trials": 50}, ...},
        "failed": {"rlg": {"failed": 3, "of": 50, "error": ...}},
        "flags": {"ilrg": {"not_integral": 12}},    # trials in which an attack raised each flag
        "inversion": null,              # how images were restored: labels, iterations, restarts
        "pictures": null,               # of the first trial, as in `image_reconstruction`
        "local": "10 local steps, learning rate 0.05",  # only with local training
        "auxiliary": 500,               # only with auxiliary data: samples of each class
        "task": "bce, 14 findings",     # only with another loss than the plain cross-entropy
        "spoke": {"exact": 20},         # only with auto: trials in which it chose each attack
        "shrunk": ["10 trials instead of 50"],
        "note": null                    # why published figures may be outside the interval
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
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from scipy import stats

from labelleak._version import __version__
from labelleak.lab.definition import DefenseSetting, Experiment
from labelleak.lab.keys import definition_of
from labelleak.lab.metric_catalog import IMAGE_SCORES, Metric, metric
from labelleak.lab.parts import labeled
from labelleak.lab.published_figures import PublishedRun
from labelleak.lab.store import Record
from labelleak.lab.study import Study, StudyRow, stage_title
from labelleak.lab.tasks import task_title

SUMMARY_SCHEMA = "labelleak/study/1"
"""Name and version of the summary format."""

INTERVAL = (
    "95 % interval of the mean over trials: Student's t, cut off at the bounds of the metric; "
    "Wilson's where every trial is 0 or 1, since no scatter among these trials does not mean that "
    "there is none. It covers the choice of the batches, and that of the network only where "
    "each trial has its own: the other rows say 'one network'"
)
_CONFIDENCE = 0.95


def summarize(
    study: Study, records: Iterable[Record], *, found: Collection[str] = ()
) -> dict[str, Any]:
    """The summary of a study.

    Args:
        study: The study.
        records: Records of trials in any order; those of other experiments are ignored.
        found: Keys of the records that were there before this run.

    Returns:
        Plain data as described above. Trials without a record are not counted.
    """
    known = _Known(records)
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
        "panels": [panel.model_dump(mode="json") for panel in study.panels],
        "rows": [_row(row, metrics, known, found) for row in study.rows],
        "omitted": list(study.omitted),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """The software and hardware of this process, for a summary.

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


class _Known:
    """Records by what they are of."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_key: dict[str, Record] = {}
        self._by_definition: dict[str, Record] = {}
        for record in records:
            self._by_key[record["key"]] = record
            self._by_definition[definition_of(record)] = record

    def of(self, experiment: Experiment) -> tuple[list[Record], int]:
        """The records of an experiment, and how many of them earlier code made.

        Those of earlier code, the newest of each trial, are taken only where this code has made
        none.
        """
        trials = range(experiment.trials)
        keys = [experiment.trial_key(index) for index in trials]
        made = [self._by_key[key] for key in keys if key in self._by_key]
        if made:
            return made, 0
        keys = [experiment.definition_key(index) for index in trials]
        made = [self._by_definition[key] for key in keys if key in self._by_definition]
        return made, len(made)


def _row(
    row: StudyRow, metrics: Sequence[Metric], known: _Known, found: Collection[str]
) -> dict[str, Any]:
    experiment = row.experiment
    records, earlier = known.of(experiment)
    cells = {m.name: cell for m in metrics if (cell := _cell(m, row, records)) is not None}
    network = experiment.network
    return {
        "label": row.label,
        "data": experiment.data,
        "stands_in_for": experiment.stands_in_for,
        "split": experiment.data_split,
        "image_size": experiment.image_size,
        "network": network.label,
        "activation": network.activation if network.plugin is None else None,
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
        "earlier": earlier,
        "code": sorted({str(record.get("code", "not recorded")) for record in records}),
        "range": experiment.range,
        "panel": row.panel,
        "series": row.series,
        "x": row.x,
        "metrics": cells,
        "failed": _failures(experiment, records),
        "flags": _flags(experiment, records),
        "inversion": None if experiment.inversion is None else experiment.inversion.model_dump(),
        "pictures": next((r["pictures"] for r in records if "pictures" in r), None),
        **_beyond_one_batch(experiment),
        **_spoke(experiment, records),
        **_origin(records, found),
        "shrunk": list(row.shrunk),
        "note": _note(row, metrics, cells),
    }


def _beyond_one_batch(experiment: Experiment) -> dict[str, Any]:
    """Fields of rows with local training, auxiliary data or a loss of their own."""
    found: dict[str, Any] = {}
    if experiment.loss is not None:
        found["task"] = task_title(experiment.loss, experiment.targets)
    local = experiment.local
    if local is not None:
        epochs = f" in {local.epochs} epochs" if local.epochs > 1 else ""
        steps = "local steps" if local.optimizer == "sgd" else f"local steps of {local.optimizer}"
        found["local"] = f"{local.steps} {steps}{epochs}, learning rate {local.learning_rate:g}"
        for what in ("momentum", "weight_decay", "proximal"):
            if value := getattr(local, what):
                found["local"] += f", {what.replace('_', ' ')} {value:g}"
        if local.round > 1:
            found["local"] += f", in round {local.round}"
    if experiment.auxiliary_per_class is not None:
        found["auxiliary"] = experiment.auxiliary_per_class
    return found


def _origin(records: Sequence[Record], found: Collection[str]) -> dict[str, Any]:
    """What was there before this run, and which packages the plug-ins are from."""
    before = sum(record["key"] in found for record in records)
    packages = {name: one for r in records for name, one in r.get("plugins", {}).items()}
    return {
        **({"found": before} if before else {}),
        **({"plugins": packages} if packages else {}),
    }


def _spoke(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    """How often auto chose each attack, the most frequent first."""
    if "auto" not in experiment.labels:
        return {}
    names = [record["attacks"]["auto"].get("spoke") for record in records]
    counted = Counter(name for name in names if name is not None)
    return {"spoke": dict(counted.most_common())}


def _stage_used(experiment: Experiment) -> str:
    training, local = experiment.training, experiment.local
    text = "" if training is None else f"{stage_title(training)} of {training.total}"
    if training is not None and training.samples_per_class is not None:
        text += f", {training.samples_per_class} samples of each class"
    if local is not None and local.round > 1:
        rounds = "1 round" if local.round == 2 else f"{local.round - 1} rounds"
        text += f"{', then ' if text else ''}{rounds} of {local.clients} clients"
    if experiment.network.seed == "per-trial":
        text = f"{text or 'untrained'}, other weights in each trial"
    return text or "untrained"


def _defense_title(defense: DefenseSetting) -> str | None:
    if defense.name == "none":
        return None
    if defense.plugin is not None:
        return labeled(defense.name, defense.parameters)
    value = "" if defense.value is None else f" {defense.value:g}"
    return defense.name.replace("_", " ") + value


def _cell(m: Metric, row: StudyRow, records: Sequence[Record]) -> dict[str, Any] | None:
    """One metric of one row; None where it was neither run nor published."""
    value, published = _published(m, row.published)
    run = (*row.experiment.labels, *row.experiment.baselines)
    if m.attack is not None and m.attack not in run and value is None:
        return None
    values = [v for r in records if (v := m.value(row.experiment, r)) is not None]
    if not values and value is None:
        return None
    ours, low, high = _mean_and_interval(values, m.bounds)
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    inside = None
    if published is not None and low is not None and high is not None:
        inside = low <= published[1] and published[0] <= high
    return {
        "ours": ours,
        "low": low,
        "high": high,
        "error": spread,
        "published": value,
        "difference": None if ours is None or value is None else ours - value,
        "inside": inside,
        "trials": len(values),
    }


def _published(
    m: Metric, rows: Sequence[PublishedRun]
) -> tuple[float | None, tuple[float, float] | None]:
    """The published figure, and the range of values that are printed like it."""
    for row in rows:
        if m.published is not None and m.published in row.figures:
            return row.figures[m.published], row.spread(m.published)
    return None, None


def _mean_and_interval(
    values: Sequence[float], bounds: tuple[float, float | None]
) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    if bounds == (0.0, 1.0) and set(values) <= {0.0, 1.0}:
        found = stats.binomtest(round(sum(values)), len(values)).proportion_ci(
            _CONFIDENCE, method="wilson"
        )
        return mean, float(found.low), float(found.high)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    lowest, highest = bounds
    high = mean + half if highest is None else min(mean + half, highest)
    return mean, max(mean - half, lowest), high


def _failures(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    failures = {}
    for attack in experiment.labels:
        errors = [
            error for record in records if (error := record["attacks"][attack]["error"]) is not None
        ]
        if errors:
            failures[attack] = {"failed": len(errors), "of": len(records), "error": errors[0]}
    return failures


def _flags(experiment: Experiment, records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """In how many trials each attack raised each flag, the most frequent first."""
    found = {}
    for attack in experiment.labels:
        raised = Counter(
            flag for record in records for flag in record["attacks"][attack].get("flags", ())
        )
        if raised:
            found[attack] = dict(sorted(raised.items(), key=lambda item: (-item[1], item[0])))
    return found


def _note(
    row: StudyRow, metrics: Sequence[Metric], cells: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Which published figures are outside the interval, and the possible reasons."""
    outside = [m for m in metrics if m.name in cells and cells[m.name]["inside"] is False]
    if not outside:
        return None
    reasons = []
    if row.experiment.stands_in_for is not None:
        reasons.append(f"{row.experiment.data} stands in for {row.experiment.stands_in_for}")
    if row.experiment.data_split != "train":
        reasons.append("held-out images, a few of each class, cropped at random")
    reasons += [text for text in row.shrunk if "trials instead of" not in text]
    reasoned = [m for m in outside if m.attack == "ilrg" or m.name.split("_")[0] in IMAGE_SCORES]
    if row.reason is not None and reasoned:
        reasons.append(row.reason)
    if any(m.attack == "rlg" for m in outside):
        reasons.append(
            "another definition of RLG: the authors' is not exactly the original, and this one "
            "takes the number of present classes from the rank of the gradient"
        )
    titles = ", ".join(m.title for m in outside)
    # Not one of these is shown to be the reason.
    because = "possible reasons: " + "; ".join(reasons) if reasons else "the reason is not known"
    return f"{titles}: published outside the interval; {because}"
