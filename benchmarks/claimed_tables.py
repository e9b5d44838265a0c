"""The tables of README and docs, made from the records under `results/`; used by `claims.py`."""

from collections.abc import Callable
from typing import Any

from ceiling_table import ceiling, ceiling_rows
from extras_table import extras_tried
from fidelity_tables import FIDELITY
from flag_tables import FLAGS
from labelleak.lab.published_figures import published_runs
from loss_tables import LOSSES
from markdown_tables import table, three
from measured_tables import MEASURED
from origins import origins
from page_table import page_times
from peer_tables import PEER_TABLES
from simulated_tables import SIMULATED
from trust_tables import TRUST, Read

LEADERBOARD = "results/leaderboard/summary.json"
QUICK = "results/quick/summary.json"
# Settings of the README: how a row's label begins, and its title there.
SETTINGS = {
    "FCN-3, untrained, K = 64": "FCN-3, MNIST, untrained, K = 64",
    "FCN-3, untrained, K = 128": "FCN-3, MNIST, untrained, K = 128",
    "LeNet-5, 100 classes, untrained, K = 4096": "LeNet-5, 100 classes, untrained, K = 4096",
    "FCN-3, 1000 steps, K = 8": "FCN-3, MNIST, 1000 steps, K = 8",
    "FCN-3, 1000 steps, K = 24": "FCN-3, MNIST, 1000 steps, K = 24",
    "ResNet-18, 100 classes, trained, K = 24": "ResNet-18, 100 classes, trained, K = 24",
    "FCN-3, 1000 steps, K = 64, auxiliary data": "FCN-3, MNIST, 1000 steps, K = 64, auxiliary data",
    "FCN-3, 1000 steps, 10 local steps of 64, Dirichlet, auxiliary data": (
        "the same, 10 local steps of 64, uneven labels"
    ),
}
BASELINES = ("uniform", "absent", "shuffled")


def ours(row: Any, metric: str) -> float | None:
    """Our mean of a metric in a row of a summary."""
    cell = row["metrics"].get(metric)
    return None if cell is None or cell["trials"] < row["trials"] else cell["ours"]


def row_of(read: Read, label: str) -> Any:
    """The leaderboard's row of a setting; a star stands for anything."""
    start, _, end = label.partition("*")
    for row in read(LEADERBOARD)["studies"][0]["rows"]:
        name = row["label"]
        if name == label or (end and name.startswith(start) and name.endswith(end)):
            return row
    raise KeyError(label)


def best_other(row: Any, score: str) -> tuple[str, float]:
    """The attack besides auto with the highest mean of a score, and that mean."""
    names = dict.fromkeys(name.partition(".")[0] for name in row["metrics"])
    values = {
        name: value
        for name in names
        if name not in ("auto", *BASELINES) and (value := ours(row, f"{name}.{score}")) is not None
    }
    best = max(values, key=lambda name: values[name])
    return best, values[best]


def readme_leaderboard(read: Read) -> list[str]:
    """Auto beside iLRG and the best other attack of each setting."""
    rows = []
    for label, title in SETTINGS.items():
        row = row_of(read, label)
        cells = [title]
        for score in ("lnacc", "accuracy"):
            name, value = best_other(row, score)
            cells += [three(ours(row, f"ilrg.{score}")), f"{three(value)} ({name})"]
            cells.append(three(ours(row, f"auto.{score}")))
        proven = ours(row, "auto.certified") or 0.0
        rows.append([*cells, f"{100 * proven:.0f} %" if proven else ""])
    return table(
        [
            "setting", "LnAcc: iLRG", "best other", "`auto`",
            "accuracy: iLRG", "best other", "`auto`", "proven",
        ],
        rows,
    )  # fmt: skip


def leaderboard_provenance(read: Read) -> list[str]:
    """Which samples and which code the leaderboard is of."""
    rows = [row for row in read(LEADERBOARD)["studies"][0]["rows"] if row["trials"]]
    ranges = sorted({row["range"] for row in rows})
    codes = sorted({code for row in rows for code in row["code"]})
    batches = sum(row["trials"] for row in rows)
    text = f"Recorded: {batches} batches in {len(rows)} settings, range of samples and seeds "
    text += f"`{'`, `'.join(ranges)}`, code `{'`, `'.join(codes)}`."
    if ranges != ["evaluation"]:
        text += (
            " **This is an earlier run**, made before the ranges were kept apart: bounds of `auto` "
            "were chosen after some of its rows had been seen, gradients were rounded once from "
            "double precision, and fewer attacks stood in some settings."
        )
    return [text]


def readme_attacks(read: Read) -> list[str]:
    """The four attacks of iLRG's own comparison."""
    columns = {
        "FCN-3, MNIST, K = 24": ("table1", "FCN-3 on MNIST, untrained, K = 24"),
        "LeNet-5 with Swish, 100 classes, K = 24": (
            "table1", "LeNet-5 (Swish) on CIFAR-100, untrained, K = 24"
        ),
        "FCN-3, MNIST, K = 128": ("figure3", "FCN-3 on MNIST, untrained, K = 128"),
        "VGG-16, 100 classes, trained, K = 64": (
            "figure2", "VGG-16 on CIFAR-100, epoch 100, K = 64"
        ),
    }  # fmt: skip
    metrics = {
        ("iLRG, LeAcc", "gradient of weight and bias"): "ilrg.leacc",
        ("iLRG, LnAcc", ""): "ilrg.lnacc",
        ("RLG, LeAcc", "gradient of the weight"): "rlg.leacc",
        ("GradInversion, LeAcc", "gradient of the weight, ReLU"): "gradinversion.leacc",
        ("iDLG, LeAcc", "gradient of the weight, ReLU"): "idlg.leacc",
    }
    studies = {study["name"]: study["rows"] for study in read(QUICK)["studies"]}
    rows = [
        next(row for row in studies[study] if row["label"] == label)
        for study, label in columns.values()
    ]
    lines = [
        [*heading, *(three(ours(row, metric)) for row in rows)]
        for heading, metric in metrics.items()
    ]
    return table(["attack", "needs", *columns], lines)


def table1_tally(read: Read) -> list[str]:
    """How many of table 1's figures agree, and how little some of them say."""
    study = next(study for study in read(QUICK)["studies"] if study["name"] == "table1")
    cells = [
        cell
        for row in study["rows"]
        for cell in row["metrics"].values()
        if cell["published"] is not None and cell["inside"] is not None
    ]
    inside = sum(cell["inside"] for cell in cells)
    same = sum(cell["ours"] in (0.0, 1.0) for cell in cells)
    return [
        f"Of table 1, {inside} of the {len(cells)} figures that the authors' logs give lie inside "
        f"our intervals. In {same} of them every batch of ours has the same score, and the "
        "interval is as wide as the number of batches leaves open."
    ]


def coverage(read: Read) -> list[str]:
    """Share of the true counts inside 95 % intervals, in every setting of the leaderboard."""
    names = ("pooled", "calibrated", "auto")
    lines = []
    for row in read(LEADERBOARD)["studies"][0]["rows"]:
        cells = [row["metrics"].get(f"{name}.coverage") for name in names]
        if not any(cell and cell["trials"] for cell in cells):
            continue
        texts = [
            f"{three(cell['ours'])} ({cell['trials']} of {row['trials']})"
            if cell and cell["trials"]
            else ""
            for cell in cells
        ]
        lines.append([row["label"], *texts])
    return table(["setting", *(f"`{name}`" for name in names)], lines)


def figure4(read: Read) -> list[str]:
    """Quality of restored images by what is known of the labels, beside the published figures."""
    study = next(study for study in read(QUICK)["studies"] if study["name"] == "figure4")
    kinds = ("shared", "free", "restored", "calibrated", "given")
    lines = []
    for number, network in enumerate(("FCN-3 on MNIST", "ResNet-18 on CIFAR-100"), start=1):
        rows = {
            "calibrated" if "by calibrated" in row["label"] else row["inversion"]["labels"]: row
            for row in study["rows"]
            if row["label"].startswith(network)
        }
        first = rows["shared"]
        title = f"{first['network']}, {first['data']}, K = {first['batch_size']}, "
        title += f"{first['trials']} batch{'es' if first['trials'] > 1 else ''}, "
        title += f"{first['inversion']['iterations']} iterations"
        for metric, what in (("psnr", "whole batch"), ("psnr_best6", "six best")):
            values = {known: ours(row, metric) for known, row in rows.items()}
            lines.append(_decibels(title, what, [values.get(known) for known in kinds]))
            title = "the same"
        printed = {
            known: published_runs()[f"figure4_{known}/{number}"].figures["psnr_best6"]
            for known in ("shared", "restored")
        }
        values = {**dict.fromkeys(kinds), **printed}
        lines.append(_decibels("published", "six of one batch, chosen by eye", [*values.values()]))
    headings = [
        "mean PSNR, dB", "over", "`shared`", "`free`", "`restored` by iLRG",
        "`restored` by calibrated", "`given`", "`restored` by iLRG less `shared`",
    ]  # fmt: skip
    return table(headings, lines)


def _decibels(title: str, what: str, values: list[float | None]) -> list[str]:
    shared, _, restored = values[:3]
    assert shared is not None, "it is always measured"
    assert restored is not None, "it is always measured"
    cells = ["" if value is None else f"{value:.2f}" for value in values]
    return [title, what, *cells, f"{restored - shared:.1f}"]


TABLES: dict[str, Callable[[Read], list[str]]] = {
    "readme-leaderboard": readme_leaderboard,
    "leaderboard-provenance": leaderboard_provenance,
    "readme-attacks": readme_attacks,
    "table1-tally": table1_tally,
    "coverage": coverage,
    "figure4": figure4,
    "constants": origins,
    "ceiling": ceiling,
    "ceiling-rows": ceiling_rows,
    "pages": page_times,
    "extras": extras_tried,
    **FIDELITY,
    **FLAGS,
    **LOSSES,
    **MEASURED,
    **PEER_TABLES,
    **SIMULATED,
    **TRUST,
}
"""What a page asks for by name."""
