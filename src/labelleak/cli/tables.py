"""Records as tables in a terminal; nothing is computed here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from labelleak.report.text import MEANINGS, NONE, SCORES, number, scores_of_all_batches

_SHOWN_SCORES = ("accuracy", "relative_advantage", "exact", "leacc", "lnacc", "recall")

# Scores of a comparison. IRec is the paper's recall, of counts before their sum is repaired.
_COMPARED = {
    "leacc": SCORES["leacc"],
    "lnacc": SCORES["lnacc"],
    "irec": "IRec",
    "accuracy": SCORES["accuracy"],
    "exact": SCORES["exact"],
}
_COMPARED_IF_MEASURED = {"certified": "proven", "coverage": "coverage", "seconds": "s"}
# Of so many trials their range is an interval of the median at 95%, whatever their distribution
# (1 - 2 / 2**n); of fewer a mean has none that does not rest on an assumed one.
_FEWEST_TRIALS = 6
# Columns of a terminal that has room for an interval.
_WIDE = 96

# Metrics of a row that the paper has no figure for.
_UNPUBLISHED_SHOWN = ("ilrg.leacc", "ilrg.lnacc", "ilrg.irec", "psnr_best6")
_ALWAYS_SHOWN = ("psnr",)


def print_attacks(rows: Sequence[Mapping[str, Any]], target: Console) -> None:
    """Print what each attack needs, gives and assumes.

    Args:
        rows: For each attack ``name``, ``title``, ``needs``, ``gives``, ``assumes``, ``reference``
            and ``package``.
        target: Where to print.
    """
    for row in rows:
        target.print(Text.assemble((str(row["name"]), "bold"), f": {row['title']}"))
        facts = Table.grid(padding=(0, 2))
        for key in ("needs", "gives", "assumes", "reference", "package"):
            value = row[key]
            facts.add_row(key, "; ".join(value) if isinstance(value, list) else value)
        target.print(Padding(facts, (0, 0, 1, 2)))
    target.print("set: which classes are in the batch; counts: how many samples of each.")


def print_scores(records: Sequence[Mapping[str, Any]], target: Console) -> None:
    """Print the scores of several attacks on one update.

    Args:
        records: Audit records with a score.
        target: Where to print.
    """
    table = Table(
        title="Attacks on the same update",
        caption=f"{SCORES['recall']}: {MEANINGS['recall']}; {NONE}: the attack tells a set only",
        caption_justify="left",
    )
    table.add_column("attack")
    for key in _SHOWN_SCORES:
        table.add_column(SCORES[key], justify="right")
    for record in records:
        scores = (number(record["score"].get(key)) for key in _SHOWN_SCORES)
        table.add_row(record["attack"], *scores)
    target.print(table)


def print_comparison(summary: Mapping[str, Any], target: Console) -> None:
    """Print a grid of experiments: which attack is best, a table for each experiment, what failed.

    Args:
        summary: Schema ``labelleak/study/1``.
        target: Where to print.
    """
    from labelleak.report.comparison import comparison

    measured = {m["name"].rpartition(".")[2] for m in summary["metrics"]}
    further = {key: title for key, title in _COMPARED_IF_MEASURED.items() if key in measured}
    attacks = dict.fromkeys(m["attack"] for m in summary["metrics"] if m["attack"] is not None)
    tables = [
        (row, _attacks_table(row, attacks, _COMPARED | further, target.width))
        for row in summary["rows"]
    ]
    tables = [(row, table) for row, table in tables if table.row_count]
    if tables:
        target.print(Text(summary["title"], style="bold"))
        found = comparison(summary)
        if found is not None:
            target.print(found["headline"])
        for row, table in tables:
            target.print()
            target.print(Text.assemble((row["label"], "bold"), f", {row['trials']} trials"))
            target.print(table)
        target.print(
            "Means over trials; after the accuracy half of its 95% interval, from "
            f"{_FEWEST_TRIALS} trials on. LeAcc, LnAcc and IRec are of counts before their sum is "
            "repaired, as published."
        )
    _print_earlier(summary, target)
    for row in summary["rows"]:
        for attack, failure in row["failed"].items():
            target.print(
                f"{attack} could not run in {failure['failed']} of {failure['of']} trials of "
                f"{row['label']!r}: {failure['error']}",
            )


def _attacks_table(
    row: Mapping[str, Any], attacks: Iterable[str], columns: Mapping[str, str], width: int
) -> Table:
    """The scores of every attack in one experiment."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("attack", no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    for attack in attacks:
        cells = scores_of_all_batches(row["metrics"], attack, _COMPARED)
        if any(cells.values()) or attack in row["failed"]:
            cells |= {key: row["metrics"].get(f"{attack}.{key}") for key in columns.keys() - cells}
            texts = (
                _mean(cells[key], interval=key == "accuracy" and width >= _WIDE) for key in columns
            )
            table.add_row(attack, *texts)
    return table


def _print_earlier(summary: Mapping[str, Any], target: Console) -> None:
    """Name the rows that hold nothing that this code has run."""
    names = [repr(row["label"]) for row in summary["rows"] if row.get("earlier")]
    if names:
        which = "all rows" if len(names) == len(summary["rows"]) else "; ".join(names)
        target.print(f"From an earlier run, by another version of the code: {which}")
    trials = sum(row["trials"] for row in summary["rows"])
    found = sum(row.get("found", 0) for row in summary["rows"] if not row.get("earlier"))
    if found:
        target.print(f"From an earlier run of the same code: {found} of {trials} trials")


def _mean(cell: Mapping[str, Any] | None, *, interval: bool) -> str:
    if cell is None or cell["ours"] is None:
        return NONE
    if cell["low"] is None or not interval or cell["trials"] < _FEWEST_TRIALS:
        return number(cell["ours"])
    half = max(cell["high"] - cell["ours"], cell["ours"] - cell["low"])
    return f"{number(cell['ours'])} \N{PLUS-MINUS SIGN}{number(half)}"


def print_study(summary: Mapping[str, Any], target: Console, *, explained: bool = False) -> None:
    """Print a study of the paper: how much agrees, each figure beside the published one, notes.

    Args:
        summary: Schema ``labelleak/study/1``.
        target: Where to print.
        explained: Whether an earlier study has said already what the intervals are.
    """
    table = Table()
    table.add_column("setting", overflow="fold")
    table.add_column("metric")
    for heading in ("ours", "95% interval", "published", "difference"):
        table.add_column(heading, justify="right")
    for row in summary["rows"]:
        label = row["label"]
        for metric, cell in _shown(summary, row):
            style = "yellow" if cell["inside"] is False else None
            table.add_row(label, metric["title"], *_beside_published(metric, cell), style=style)
            label = ""
        table.add_section()
    if table.row_count:
        target.print(Text.assemble((summary["title"], "bold"), f". {_agreement(summary)}"))
        target.print(table)
        if not explained:
            target.print(summary["interval"])
    _print_earlier(summary, target)
    for row in summary["rows"]:
        if row["note"]:
            target.print(Text.assemble((row["label"], "yellow"), f": {row['note']}"))
    if summary["omitted"]:
        target.print("Left out, shrunk or replaced, at this scale and with this data:")
    for text in summary["omitted"]:
        target.print(f"  {text}")
    target.print()


def _agreement(summary: Mapping[str, Any]) -> str:
    """How many published figures lie inside our intervals."""
    cells = [cell for row in summary["rows"] for cell in row["metrics"].values()]
    held = [cell["inside"] for cell in cells if cell["inside"] is not None]
    if not held:
        return "No published figure has an interval of ours to be held to."
    return f"{held.count(True)} of {len(held)} published figures are inside our 95% interval."


def _shown(
    summary: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The metrics of a row with a published figure; if it has none, the usual metrics."""
    cells = row["metrics"]
    published = [name for name in cells if cells[name]["published"] is not None]
    for metric in summary["metrics"]:
        shown = (*(published or _UNPUBLISHED_SHOWN), *_ALWAYS_SHOWN)
        if metric["name"] in shown and metric["name"] in cells:
            yield metric, cells[metric["name"]]


def _beside_published(
    metric: Mapping[str, Any], cell: Mapping[str, Any]
) -> tuple[str, str, str, str]:
    fixed = metric["bounds"][1] is not None
    ours, low, high, published = (
        number(cell[key], fixed=fixed) for key in ("ours", "low", "high", "published")
    )
    interval = NONE if cell["low"] is None else f"{low}..{high}"
    return ours, interval, published, number(cell["difference"], fixed=fixed, signed=True)


def print_inversion(
    record: Mapping[str, Any], means: Mapping[str, float | None] | None, target: Console
) -> None:
    """Print what an inversion did, and the scores of its pictures.

    Args:
        record: Schema ``labelleak/inversion/1``.
        means: Means over the batch of ``psnr``, ``ssim`` and ``lpips``, each None where it is not
            available; None where the true images are not known.
        target: Where to print.
    """
    from labelleak.restoration import Flag

    found = record["result"]
    words = [f"Method {found['method']}"]
    if found["mode"] is not None:
        by = "" if found["attack"] is None else f" by {found['attack']}"
        words.append(f"labels {found['mode']}{by}")
    if found["distance"] is not None:
        words.append(f"distance {found['distance']:.3g} after {found['iterations']} iterations")
    interrupted = ", interrupted: the best so far" if found["interrupted"] else ""
    target.print("; ".join([*words, f"{record['seconds']:.1f} s{interrupted}"]))
    for name in found["flags"]:
        target.print(f"flag {name}: {Flag[name.upper()].text}")
    if means is not None:
        psnr, ssim, lpips = (means[name] for name in ("psnr", "ssim", "lpips"))
        target.print(
            f"Mean PSNR {psnr:.2f} dB, SSIM {_or_missing(ssim)}, LPIPS {_or_missing(lpips)}"
        )


def _or_missing(mean: float | None) -> str:
    return "not available" if mean is None else f"{mean:.3f}"
