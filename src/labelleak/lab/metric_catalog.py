"""The metrics of studies by name, and how each is read from the record of a trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from labelleak.lab.definition import Experiment
from labelleak.lab.store import Record

Part = Literal["rounded", "counts", "predicted", "outcome", "measures", "baselines"]

TABLE5_CLASSES = (0, 18, 92)
"""The classes of table 5, whose restored numbers are published."""


@dataclass(frozen=True)
class Metric:
    """One metric of a study.

    Attributes:
        name: Name in a study, such as ``ilrg.leacc``.
        title: Short title for a heading.
        description: Meaning, for the reader.
        bounds: Smallest and largest possible value; None for no limit.
        attack: The attack or the baseline that it is about; None for a measure of the batch.
        part: Part of the record that holds it. Of an attack: ``rounded`` (scores of the counts
            before their sum is repaired, as published), ``counts``, ``predicted`` or ``outcome``.
            Of the whole record: ``measures`` or ``baselines``.
        field: Name in that part.
        published: Name of the published figure; None where there is none.
    """

    name: str
    title: str
    description: str
    bounds: tuple[float, float | None]
    attack: str | None
    part: Part
    field: str
    published: str | None = None

    def value(self, experiment: Experiment, record: Record) -> float | None:
        """The value in the record of a trial.

        Args:
            experiment: The experiment that the trial is of.
            record: The record.

        Returns:
            The value; None where the record has none.
        """
        if self.part == "measures":
            value = record["measures"].get(self.field)
            return None if value is None else float(value)
        if self.part == "baselines":
            return float(record["baselines"][self.attack][self.field])
        entry = record["attacks"].get(self.attack)
        if entry is None or entry["error"] is not None:
            return None
        if self.part == "outcome":
            value = entry.get(self.field)
            return None if value is None else float(value)
        if self.part == "predicted":
            classes, counts = experiment.batch.classes, entry.get("predicted")
            if classes is None or counts is None:
                return None
            # Other classes may replace the published ones, in the same order.
            label = classes[TABLE5_CLASSES.index(int(self.field))]
            return float(counts.get(str(label), 0))
        scores = entry[self.part] or entry["counts"]
        if scores is not None and self.field == "above_guess" and "above_guess" not in scores:
            return _above_even_guess(record, scores)
        value = None if scores is None else scores.get(self.field)
        return None if value is None else float(value)


def _above_even_guess(record: Record, scores: dict[str, Any]) -> float | None:
    """It in older records: by the name that it had, or from the even guess that is beside it."""
    if "advantage" in scores:
        value: float | None = scores["advantage"]
        return value
    accuracy, guess = scores["accuracy"], (record.get("baselines") or {}).get("uniform")
    return None if guess is None or accuracy is None else float(accuracy - guess["accuracy"])


class _Score(NamedTuple):
    title: str
    description: str
    part: Part
    field: str
    most: float | None = 1.0


# Of every attack and every baseline.
_SCORES = {
    "leacc": _Score("LeAcc", "classes rightly told present or absent", "rounded", "leacc"),
    "lnacc": _Score("LnAcc", "classes with the right number of instances", "rounded", "lnacc"),
    "irec": _Score("IRec", "instances restored, of counts whose sum is free", "rounded", "recall"),
    "accuracy": _Score(
        "accuracy", "instances restored, of counts that sum to K", "counts", "accuracy"
    ),
    "exact": _Score("exact", "batches with every count right", "counts", "exact"),
}
# Of an attack, where an experiment or a study asks for it.
_FURTHER = {
    "above_guess": _Score(
        "above guess", "accuracy less that of an even guess", "counts", "above_guess"
    ),
    "certified": _Score("certified", "batches whose counts are proven", "outcome", "certified"),
    "coverage": _Score(
        "coverage", "true counts inside the attack's 95 % intervals", "measures", "coverage"
    ),
    "macro_error": _Score(
        "macro error", "mean error of a label's share of the samples", "outcome", "macro_error"
    ),
    "shares_linf": _Score(
        "largest error of a share", "largest error of a class's share", "counts", "shares_linf"
    ),
    "shares_cosine": _Score(
        "cosine distance of shares", "one less the cosine of the shares", "counts", "shares_cosine"
    ),
    "shares_js": _Score(
        "Jensen-Shannon distance of shares", "to base 2, of the shares", "counts", "shares_js"
    ),
    "seconds": _Score("seconds", "time of one processor", "measures", "seconds", most=None),
}
_ATTACK_TITLES = {"ilrg": "iLRG", "idlg": "iDLG", "gradinversion": "GI", "rlg": "RLG"}
_BASELINES = {
    "uniform": ("uniform", "as many of each class"),
    "absent": ("all absent", "no class is there"),
    "shuffled": ("shuffled", "the true numbers, dealt out at random"),
}
_BASELINE_SCORES = ("leacc", "lnacc", "accuracy", "exact")
_PUBLISHED = {
    "ilrg.leacc": "leacc",
    "ilrg.lnacc": "lnacc",
    "ilrg.irec": "irec",
    "idlg.leacc": "idlg_leacc",
    "gradinversion.leacc": "gi_leacc",
    "rlg.leacc": "rlg_leacc",
}
IMAGE_SCORES = {"psnr": "PSNR (dB, peak 1)", "ssim": "SSIM", "lpips": "LPIPS (VGG)"}
"""Titles of the scores of restored images."""

# Measure -> name -> title. A name may belong to several measures.
_MEASURES = {
    "cossim": {
        "probability_cossim": "CosSim of the restored class probabilities",
        "embedding_cossim": "CosSim of the restored class embeddings",
    },
    "approximations": {
        **{
            f"{name}_{error.lower()}": f"{error} of approximation {what}"
            for name, what in {
                "a1": "1", "a2_weight": "2, weights", "a2_bias": "2, bias", "a3": "3"
            }.items()
            for error in ("MSE", "MRE")
        },
        "embedding_mse": "MSE of the restored class embeddings",
        "embedding_cossim": "CosSim of the restored class embeddings",
    },
    "soteria_embedding": {
        "soteria_embedding_mse": "MSE of the gradient's rows and the class embeddings (Soteria)",
        "soteria_embedding_cossim": (
            "CosSim of the gradient's rows and the class embeddings (Soteria)"
        ),
    },
    "inversion": {
        f"{name}{suffix}": f"{title}, mean over {over}"
        for name, title in IMAGE_SCORES.items()
        for suffix, over in (("", "the batch"), ("_best6", "its six best images"))
    },
}  # fmt: skip
_MEASURE_TITLES = {name: title for group in _MEASURES.values() for name, title in group.items()}


def metric(name: str) -> Metric:
    """A metric by its name.

    Args:
        name: ``ATTACK.leacc``, ``.lnacc``, ``.irec``, ``.accuracy`` or ``.exact`` of any attack or
            baseline; of an attack ``.above_guess``, ``.certified``, ``.coverage``,
            ``.macro_error``, ``.shares_linf``, ``.shares_cosine``, ``.shares_js`` and ``.seconds``,
            too; ``ilrg.instances_C`` of the published class C of table 5; or a measure such as
            ``a1_mse``.

    Returns:
        The metric.

    Raises:
        ValueError: There is no metric of that name.
    """
    if name in _MEASURE_TITLES:
        title = _MEASURE_TITLES[name]
        similarity = name.endswith("cossim") or name.startswith("ssim")
        low, most = (-1.0, 1.0) if similarity else (0.0, None)
        return Metric(name, title, title, (low, most), None, "measures", name, name)
    attack, _, field = name.rpartition(".")
    title = _ATTACK_TITLES.get(attack, attack)
    if field.startswith("instances_"):
        label = field.removeprefix("instances_")
        text = f"mean restored number of instances of class {label}"
        title = f"{title} class {label}"
        return Metric(name, title, text, (0.0, None), attack, "predicted", label, field)
    known = _SCORES if attack in _BASELINES else _SCORES | _FURTHER
    if not attack or field not in known:
        raise ValueError(f"there is no metric {name!r}")
    heading, text, part, key, most = known[field]
    if attack in _BASELINES:
        title, what = _BASELINES[attack]
        part, text = "baselines", f"{text}; baseline: {what}"
    elif part == "measures":
        key = name
    title = f"{title} {heading}"
    least = -1.0 if field == "above_guess" else 0.0
    return Metric(name, title, text, (least, most), attack, part, key, _PUBLISHED.get(name))


def metrics_of(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """Names of the metrics that the records of experiments hold.

    Args:
        experiments: The experiments.

    Returns:
        The scores of all attacks and baselines, then the measures, each name once.
    """
    attacks = dict.fromkeys(attack for e in experiments for attack in e.labels)
    baselines = dict.fromkeys(name for e in experiments for name in e.baselines)
    measures: set[str] = {measure for e in experiments for measure in e.measures}
    if any(e.inversion is not None for e in experiments):
        measures.add("inversion")
    names = [f"{attack}.{field}" for attack in attacks for field in _SCORES]
    names += [f"{attack}.certified" for attack in ("auto", "exact") if attack in attacks]
    if any(e.targets is not None and e.targets.findings for e in experiments):
        names += [f"{attack}.macro_error" for attack in attacks]
    for field in ("coverage", "seconds"):
        names += [f"{attack}.{field}" for attack in attacks if field in measures]
    names += [f"{name}.{field}" for name in baselines for field in _BASELINE_SCORES]
    names += [name for measure, group in _MEASURES.items() if measure in measures for name in group]
    return tuple(dict.fromkeys(names))
