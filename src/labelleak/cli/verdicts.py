"""An audit in a terminal: the verdict, then why, then what to do, then the counts."""

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labelleak.report.text import (
    CHANGES,
    INCONCLUSIVE,
    INTERVAL,
    MEANINGS,
    SCORES,
    class_rows,
    figures_of_changes,
    grouped,
    number,
    what_to_do,
)

_MOST_CLASSES = 40
_MOST_DO = 6
_SCORES = ("accuracy", "guess", "relative_advantage", "exact")
_OF_PAPERS = ("leacc", "lnacc")
_LONGEST_BAR = 36

# No verdict is green, as none says that the labels are safe.
_STYLES = {"over threshold": "bold red", "inconclusive": "bold yellow"}


def print_record(record: Mapping[str, Any], target: Console) -> None:
    """Print an audit record: the verdict, why, what to do, and what was restored.

    Args:
        record: Schema ``labelleak/audit/1``.
        target: Where to print.
    """
    target.print(_verdict_line("Verdict", record))
    if record.get("ceiling"):
        target.print(record["ceiling"]["text"])
    for flag in record["flags"]:
        target.print(Text.assemble(("flag", "yellow"), f" {flag['name']}: {flag['text']}"))
    advice = what_to_do(record)
    if advice:
        target.print(Text("What to do", style="bold"))
        for line in advice[:_MOST_DO]:
            wrapped = wrap(line, target.width, initial_indent="  - ", subsequent_indent="    ")
            target.print("\n".join(wrapped))
    target.print()
    target.print(_observed(record))
    target.print(_counts_table(record, target))
    if record.get("intervals") and record["counts"]:
        target.print(f"95% interval: {INTERVAL}")
    if record["score"]:
        target.print(f"Score: {', '.join(_scores(record))}")


def _scores(record: Mapping[str, Any]) -> Iterator[str]:
    """Title and figure of what is judged by; of the papers' scores with their meaning."""
    for key in SCORES:
        value = record["score"].get(key)
        if value is None:
            continue
        if key in _SCORES or key in _OF_PAPERS:
            meaning = f" ({MEANINGS[key]})" if key in _OF_PAPERS else ""
            yield f"{SCORES[key]} {number(value)}{meaning}"
        elif key == "small_cells_told" and record.get("measure") == "small-cells":
            yield f"{SCORES[key]} {value:.0f}"


def _verdict_line(title: str, record: Mapping[str, Any]) -> Text:
    verdict = record["verdict"]
    style = _STYLES.get(verdict, "bold")
    return Text.assemble(f"{title}: ", (verdict, style), f" - {record['reason']}")


def _observed(record: Mapping[str, Any]) -> Text:
    """What was seen, and by which attack."""
    bias = "" if any(flag["name"] == "no_bias" for flag in record["flags"]) else " and bias"
    steps = f", {record['local_steps']} local steps" if record["local_steps"] > 1 else ""
    return Text.assemble(
        "Head ",
        (record["head"] or "(top level)", "bold"),
        f": {record['classes']} classes, {record['features']} features, weight{bias}; "
        f"batch size {record['batch_size'] or 'unknown'}{steps}; attack ",
        (record["attack"], "bold"),
        f" ({record['seconds'] * 1000:.0f} ms)",
    )


def _counts_table(record: Mapping[str, Any], target: Console) -> Table:
    """Restored (and true) numbers per class; on a terminal as bars, too."""
    rows = class_rows(record)
    table = Table()
    table.add_column("class", justify="right")
    if record["true_counts"]:
        table.add_column("true", justify="right")
    share = record["proportions"] and not record["counts"]
    table.add_column("restored share" if share else "restored", justify="right")
    sure = any(row["interval"] for row in rows)
    if sure:
        table.add_column("95% interval", justify="right")
    drawn = bool(target.is_terminal and record["counts"])
    if drawn:
        table.add_column("restored, and its interval" if sure else "restored", no_wrap=True)
    longest = max([1.0, *(row["high"] for row in rows)])
    for row in rows[:_MOST_CLASSES]:
        cells = [str(row["label"]), *([str(row["true"])] if record["true_counts"] else [])]
        cells += [row["text"], *([row["interval"]] if sure else [])]
        cells += [count_bar(row, longest, ascii_only=target.encoding != "utf-8")] if drawn else []
        table.add_row(*cells, style="red" if row["wrong"] else None)
    if len(rows) > _MOST_CLASSES:
        table.caption = f"and {len(rows) - _MOST_CLASSES} more classes (--format json has all)"
    return table


def count_bar(row: Mapping[str, Any], longest: float, *, ascii_only: bool = False) -> str:
    """A bar of a restored count, in which a line marks its interval.

    Args:
        row: ``restored``, and the ends of its interval, ``low`` and ``high``.
        longest: The number that the longest bar stands for.
        ascii_only: Whether the terminal can show no other characters.

    Examples:
        >>> count_bar({"restored": 2, "low": 1.0, "high": 3.0}, 4.0, ascii_only=True)
        '#########---------.........'
    """
    full, inside, line = ("#", "-", ".") if ascii_only else ("\u2588", "\u2593", "\u2500")
    scale = _LONGEST_BAR / longest
    low, middle, high = (
        round(scale * max(0.0, value)) for value in (row["low"], row["restored"], row["high"])
    )
    bar: str = (
        full * min(low, middle) + inside * (middle - min(low, middle)) + line * (high - middle)
    )
    return bar


def print_advice(advice: Mapping[str, Any], target: Console) -> None:
    """Print what was found of an update, and what each change of it costs and buys.

    Args:
        advice: Schema ``labelleak/advice/1``.
        target: Where to print.
    """
    target.print(_verdict_line("As it is", advice["audit"]))
    if limit := advice["audit"].get("limit"):
        target.print(f"Limit: {limit} (--measure and --threshold set another)")
    target.print(Text.assemble(("Advice: ", "bold"), advice["summary"]))
    figures = figures_of_changes(advice["changes"], advice["audit"].get("measure"))
    table = Table()
    for title in ("change", "how far"):
        table.add_column(title, overflow="fold")
    for title in ("cosine", "epsilon", *figures.values()):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for change in advice["changes"]:
        verdict = change["verdict"]
        table.add_row(
            change["name"],
            change["setting"],
            number(change["cosine"]),
            grouped(change["epsilon"]),
            *(number(change[key], fixed=key != "told") for key in figures),
            Text("within" if verdict == "audited" else verdict, style=_STYLES.get(verdict, "")),
        )
    target.print(table)
    for key, title in {"cosine": "cosine", "epsilon": "epsilon", **figures}.items():
        target.print(f"{title}: {CHANGES[key]}")
    target.print(f"inconclusive: {INCONCLUSIVE}")
    for one in advice["untried"]:
        target.print(f"Not tried: {one['name']}: {one['why']}")
