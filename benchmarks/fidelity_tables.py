"""Tables of the docs on published figures outside our intervals; used by `claims.py`.

What differs from the published run is read from the summary of the run, never written by hand. That
something differs does not show that it is the reason.
"""

import re
from collections.abc import Callable
from typing import Any

from labelleak.lab.metric_catalog import IMAGE_SCORES
from labelleak.report.text import number
from markdown_tables import table
from measured_tables import Read

QUICK = "results/quick/summary.json"
NETWORKS = "results/benchmark-one-network.json"
SCALE = "results/benchmark-paper-scale.json"
# What a summary says of a row that is smaller than the published one, by what that is.
_OTHER_DATA = re.compile(r"pixels instead of|images used several times")
_SHORTER_TRAINING = re.compile(r"^trained for ")
_SHORTER_SEARCH = re.compile(r"\b(?:iterations|restarts) instead of")
_NOT_KNOWN, _ONE_NETWORK = "not known", "not known; one network"


def what_differs(row: Any, metric: str) -> str:
    """What a row of a summary has other than the published run, as far as a metric depends on it.

    ``not known`` where nothing has, ``one network`` with it where one network stands on either
    side: the interval then leaves out that its weights are one draw.
    """
    found = []
    if row["stands_in_for"] or row["split"] != "train" or _any(_OTHER_DATA, row):
        found.append("data")
    if _any(_SHORTER_TRAINING, row):
        found.append("training")
    if metric.partition("_")[0] in IMAGE_SCORES and _any(_SHORTER_SEARCH, row):
        found.append("search for images")
    if metric.startswith("rlg."):
        found.append("definition of RLG")
    if found:
        return ", ".join(found)
    return _NOT_KNOWN if "in each trial" in row["stage_used"] else _ONE_NETWORK


def is_one_network(row: Any, metric: str) -> bool:
    """Whether nothing is known to differ, and one network stands on either side."""
    return what_differs(row, metric) == _ONE_NETWORK


def _any(pattern: re.Pattern[str], row: Any) -> bool:
    return any(pattern.search(text) for text in row["shrunk"])


def compared(read: Read) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Study, row and compared figures of every row that has such."""
    found = []
    for study in read(QUICK)["studies"]:
        for row in study["rows"]:
            cells = {k: cell for k, cell in row["metrics"].items() if cell["inside"] is not None}
            if cells:
                found.append((study, row, cells))
    return found


def tally(read: Read) -> list[str]:
    """How many published figures are inside, in a sentence."""
    cells = [cell for _, _, cells in compared(read) for cell in cells.values()]
    inside = sum(cell["inside"] for cell in cells)
    return [f"{inside} of the {len(cells)} published figures lie inside our 95 % intervals."]


def by_difference(read: Read) -> list[str]:
    """Figures inside and outside, by what differs."""
    counts: dict[str, list[int]] = {}
    for _, row, cells in compared(read):
        for name, cell in cells.items():
            counts.setdefault(what_differs(row, name), [0, 0])[not cell["inside"]] += 1
    lines = [
        [what, str(inside + outside), str(inside), str(outside)]
        for what, (inside, outside) in sorted(counts.items(), key=lambda item: item[1][1])
    ]
    return table(["differs from the published run", "figures", "inside", "outside"], lines)


def outside(read: Read) -> list[str]:
    """Every row with a published figure outside, and what differs."""
    lines = []
    for study, row, cells in compared(read):
        metrics = {metric["name"]: metric for metric in study["metrics"]}
        texts: dict[str, list[str]] = {}
        for name, cell in cells.items():
            if not cell["inside"]:
                fixed = metrics[name]["bounds"][1] is not None
                pair = (number(cell[side], fixed=fixed) for side in ("ours", "published"))
                text = "{} {} ({})".format(metrics[name]["title"], *pair)
                texts.setdefault(what_differs(row, name), []).append(text)
        lines += [
            [study["name"], row["label"], ", ".join(found), what] for what, found in texts.items()
        ]
    return table(["study", "row", "outside: ours (published)", "differs"], lines)


def one_network(read: Read) -> list[str]:
    """Published figures of one network beside those of many, trained alike, on the same batches."""
    record = read(NETWORKS)
    counts: dict[str, list[int]] = {}
    for row in record["rows"]:
        counts.setdefault(f"{row['study']}: {row['metric']}", [0, 0])[not row["inside"]] += 1
    lines = [
        [title, str(inside + outside), str(inside), str(outside)]
        for title, (inside, outside) in counts.items()
    ]
    number = record["networks"]
    interval = f"inside the 95 % interval of {number} networks on the same batches"
    return table(["figure", "stages", interval, "outside"], lines)


def trainings(read: Read) -> list[str]:
    """How long the paper's own trainings take on a core, to the first stage and the last."""
    lines = []
    for row in read(SCALE)["rows"]:
        hours = [row["seconds_per_iteration"] * row[end] / 3600 for end in ("first", "last")]
        lines.append(
            [
                f"{row['network']} on {row['data']}",
                ", ".join(row["studies"]),
                f"{row['seconds_per_iteration']:.2g}",
                *(f"{row[end]:,}" for end in ("first", "last")),
                *(f"{value:.0f}" if value >= 1 else f"{value:.2g}" for value in hours),
            ]
        )
    return table(
        [
            "training", "for", "s per iteration", "iterations to the first stage", "to the last",
            "hours to the first stage", "to the last",
        ],
        lines,
    )  # fmt: skip


FIDELITY: dict[str, Callable[[Read], list[str]]] = {
    "fidelity-tally": tally,
    "fidelity": by_difference,
    "fidelity-outside": outside,
    "one-network": one_network,
    "paper-trainings": trainings,
}
"""By the name under which a page asks for it."""
