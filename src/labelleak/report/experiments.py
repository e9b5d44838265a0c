"""The page of a run of experiments: our figures beside the published ones; and the same as CSV."""

import base64
import csv
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from labelleak.report.comparison import STEPS, comparison
from labelleak.report.figures import Summary, differences_chart, short_title, study_figures
from labelleak.report.pages import NONE, render, typeset
from labelleak.report.palette import score_colors
from labelleak.report.text import number

_ROW_COLUMNS = (
    "label", "data", "stands_in_for", "split", "image_size", "network", "activation", "batchnorm",
    "dropout", "stem", "stage", "stage_used", "batch_size", "sampler", "defense", "known_classes",
    "trials_planned", "panel", "series", "x",
)  # fmt: skip
_CELL_COLUMNS = ("ours", "low", "high", "published", "difference", "inside", "trials")


def study_page(summaries: Sequence[Summary], title: str, folder: Path | None = None) -> str:
    """A self-contained HTML page of a run: summary, figures and tables of every study.

    Args:
        summaries: Summaries of the studies in the order of the page, plain data of the schema
            ``labelleak/study/1`` (see `labelleak.lab.summary`).
        title: Heading of the page.
        folder: The run's folder, to take pictures from; None for a page without pictures.

    Returns:
        The page, one file with nothing to load. It has a script where attacks are compared without
        published figures, and is whole without it.
    """
    alone = len(summaries) == 1
    rows = [row for summary in summaries for row in summary["rows"]]
    earlier = sum(bool(row.get("earlier")) for row in rows)
    if earlier == len(rows):
        # Said once for all of them.
        summaries = [
            {**summary, "rows": [row | {"earlier": 0} for row in summary["rows"]]}
            for summary in summaries
        ]
    studies = [
        _study(number, summary, folder, alone=alone)
        for number, summary in enumerate(summaries, start=1)
    ]
    measures = {m["name"]: m for summary in summaries for m in summary["metrics"]}
    if alone and studies[0]["comparison"]:
        measures = _once_for_all_attacks(measures)
    totals = {key: sum(s["tally"][key] for s in studies) for key in ("inside", "outside", "open")}
    return render(
        "experiments.html",
        title=title,
        studies=studies,
        # Names in the script belong to one map.
        comparison=studies[0]["comparison"] if len(studies) == 1 else None,
        scale=score_colors(),
        steps=STEPS,
        totals=totals,
        experiments=len(rows),
        earlier=earlier,
        # A user's own grid has no published figures, so nothing of it can be left out.
        compared=any(study["published"] or study["omitted"] for study in studies),
        stand_ins=_stand_ins(summaries),
        differences=differences_chart(summaries) if len(studies) > 1 else None,
        scales=_distinct(summary["scale"] for summary in summaries),
        intervals=_distinct(summary["interval"] for summary in summaries),
        measures=_distinct((m["title"], m["description"]) for m in measures.values()),
        environments=_distinct(tuple(summary["environment"].items()) for summary in summaries),
    )


def summary_csv(summary: Summary) -> str:
    """Write a summary as CSV (RFC 4180): a heading, then one line per metric of each row.

    Args:
        summary: The summary of a study, schema ``labelleak/study/1``.

    Returns:
        The text; a cell without a value is empty.
    """
    stream = StringIO()
    writer = csv.writer(stream)
    writer.writerow(
        ("study", "scale", *_ROW_COLUMNS, "metric", *_CELL_COLUMNS, "failed", "shrunk", "note")
    )
    attacks = {metric["name"]: metric["attack"] for metric in summary["metrics"]}
    for row in summary["rows"]:
        for name, cell in row["metrics"].items():
            failure = row["failed"].get(attacks[name], {})
            writer.writerow(
                _plain(value)
                for value in (
                    summary["name"],
                    summary["scale"],
                    *(row[column] for column in _ROW_COLUMNS),
                    name,
                    *(cell[column] for column in _CELL_COLUMNS),
                    failure.get("failed"),
                    "; ".join(row["shrunk"]),
                    row["note"],
                )
            )
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def _once_for_all_attacks(measures: Mapping[str, Any]) -> dict[str, Any]:
    """The measures by the score that they are, where every attack has the same ones."""
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        own, kind = measure["attack"] is not None, name.rpartition(".")[2]
        title = measure["title"].rpartition(" ")[2] if own else measure["title"]
        found.setdefault(kind if own else name, {**measure, "title": title})
    return found


def _distinct(values: Any) -> list[Any]:
    """The values without repetition, in order, leaving empty ones out."""
    return list(dict.fromkeys(value for value in values if value))


def _study(number: int, summary: Summary, folder: Path | None, *, alone: bool) -> dict[str, Any]:
    found = comparison(summary) if alone else None
    # What the map and the tables behind it show is not said again.
    metrics = [m for m in summary["metrics"] if found is None or m["attack"] is None]
    rows = [_row(row, metrics) for row in summary["rows"]]
    if found is not None:
        for setting, row in zip(found["settings"], rows, strict=True):
            setting |= {"facts": row["facts"], "lines": list(_remarks(row))}
    cells = [cell for row in summary["rows"] for cell in row["metrics"].values()]
    known = [cell["inside"] for cell in cells if cell["published"] is not None]
    return {
        # An anchor is not made of the name, which in a grid is any text of the user's.
        "anchor": f"study-{number}",
        "name": summary["name"],
        "title": summary["title"],
        "source": summary["source"],
        "omitted": summary["omitted"],
        "figures": study_figures(summary),
        "pictures": [strip for row in summary["rows"] if (strip := _pictures(row, folder))],
        "comparison": found,
        "rows": [row for row in rows if found is None or row["cells"]],
        "tally": {
            "inside": known.count(True),
            "outside": known.count(False),
            "open": known.count(None),
        },
        "published": bool(known),
        "stands_in": any(row["stands_in_for"] for row in summary["rows"]),
    }


def _pictures(row: Mapping[str, Any], folder: Path | None) -> dict[str, Any] | None:
    """The best images of a row's first trial beside the true ones, with their PSNR."""
    pictures = row.get("pictures")
    if pictures is None or folder is None:
        return None
    strips = {}
    for what in ("true", "found"):
        # A stranger may have made the summary: no name in it leads out of the pictures' folder.
        path = folder / "pictures" / Path(pictures["files"][what]).name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        strips[what] = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    values = [pictures["psnr"][index] for index in pictures["best"]]
    return {
        "label": row["label"],
        **strips,
        "psnr": [_number(value, fixed=False) for value in values],
        "wrong": pictures["exact"] is False,
    }


def _row(row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [(m, row["metrics"][m["name"]]) for m in metrics if m["name"] in row["metrics"]]
    return {
        "label": row["label"],
        "facts": _facts(row),
        "stands_in_for": row["stands_in_for"],
        "data": row["data"],
        "earlier": row.get("earlier", 0),
        "shrunk": row["shrunk"],
        "failed": row["failed"],
        "note": row["note"],
        "cells": [
            _written(metric, cell, row["trials"])
            for metric, cell in shown
            if not (cell["ours"] is None and cell["published"] is None)
        ],
    }


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know of a row before its figures."""
    if row["stands_in_for"]:
        yield f"Stand-in data: {row['data']} in place of {row['stands_in_for']}"
    if row["earlier"]:
        made = f"another version of the code made these {row['earlier']} records"
        yield f"From an earlier run: {made}"
    if row["shrunk"]:
        yield f"Not as published: {'; '.join(row['shrunk'])}"
    for attack, failure in row["failed"].items():
        where = f"{failure['failed']} of {failure['of']} trials"
        yield f"{attack} could not run in {where}: {failure['error']}"


def _facts(row: Mapping[str, Any]) -> list[str]:
    """The data, network and batches that were really used."""
    layers = {True: "with ", False: "without "}
    size = f", {row['image_size']} pixels" if row["image_size"] else ""
    network = [row["network"]]
    if row["activation"]:
        network = [f"{row['network']} ({row['activation']})"]
    if row["batchnorm"] is not None:
        network.append(f"{layers[row['batchnorm']]}BatchNorm")
    if row["dropout"]:
        network.append(f"dropout {row['dropout']:g}")
    if row["stem"]:
        network.append(f"{row['stem']} stem")
    stage = row["stage_used"]
    if row["stage"] != stage and not stage.startswith((f"{row['stage']} of ", f"{row['stage']},")):
        stage += f" (published: {row['stage']})"
    trials = f"{row['trials']} trial{'' if row['trials'] == 1 else 's'}"
    if row["trials"] != row["trials_planned"]:
        trials = f"{row['trials']} of {row['trials_planned']} trials"
    return [
        f"{row['data']} ({row['split']}{size})",
        ", ".join(network),
        stage,
        *([] if "in each trial" in stage else ["one network"]),
        f"K = {row['batch_size']}, {row['sampler'].replace('_', ' ')}",
        *([row["defense"]] if row["defense"] else []),
        *(["classes known"] if row["known_classes"] else []),
        *([row["local"]] if row.get("local") else []),
        *([row["task"]] if row.get("task") else []),
        *([f"{row['auxiliary']} auxiliary samples of each class"] if row.get("auxiliary") else []),
        *_search(row.get("inversion")),
        *([f"range {row['range']}"] if row.get("range", "all") != "all" else []),
        *(f"{name} is of {package}" for name, package in row.get("plugins", {}).items()),
        trials,
        *_found(row),
    ]


def _found(row: Mapping[str, Any]) -> list[str]:
    """How many trials an earlier run of the same code had made."""
    found = row.get("found", 0)
    if not found or row.get("earlier"):
        return []
    number = "all" if found == row["trials"] else f"{found} of them"
    return [f"{number} from an earlier run of the same code"]


def _search(inversion: Mapping[str, Any] | None) -> list[str]:
    """The search for images, in words."""
    if inversion is None:
        return []
    restarts = inversion["restarts"]
    times = "" if restarts == 1 else f"{restarts} times "
    return [
        f"{times}{inversion['iterations']} iterations of IG",
        f"total variation {inversion['total_variation']:g}",
    ]


def _written(metric: Mapping[str, Any], cell: Mapping[str, Any], trials: int) -> dict[str, Any]:
    """The metric of a row with its numbers as text."""
    fixed = metric["bounds"][1] is not None
    if cell["low"] is None or cell["high"] is None:
        interval = NONE
    else:
        interval = f"{_number(cell['low'], fixed)} to {_number(cell['high'], fixed)}"
    if cell["ours"] is None:
        # Only LPIPS, which needs a download, can be missing from a trial that ran.
        outcome = "not available" if trials and "LPIPS" in metric["title"] else "not run"
    else:
        outcome = {True: "inside", False: "outside", None: ""}[cell["inside"]]
    return {
        "title": metric["title"],
        # An attack may restore counts for some batches only.
        "trials": f"in {cell['trials']} of {trials} trials" if 0 < cell["trials"] < trials else "",
        "ours": _number(cell["ours"], fixed),
        "interval": interval,
        "published": _number(cell["published"], fixed),
        "difference": _number(cell["difference"], fixed, signed=True),
        "outcome": outcome,
    }


def _number(value: float | None, fixed: bool, signed: bool = False) -> str:
    return typeset(number(value, fixed=fixed, signed=signed))


def _stand_ins(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Which data set stands in for which, and in which studies."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for summary in summaries:
        for row in summary["rows"]:
            if row["stands_in_for"]:
                pair = (row["data"], row["stands_in_for"])
                found.setdefault(pair, {})[short_title(summary)] = None
    return [
        {"data": data, "published": published, "studies": list(studies)}
        for (data, published), studies in found.items()
    ]
