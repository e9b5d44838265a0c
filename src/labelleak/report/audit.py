"""The page of one audited update."""

from typing import Any

from labelleak.report.charts import counts_chart
from labelleak.report.pages import render
from labelleak.report.text import (
    CHANGES,
    INCONCLUSIVE,
    INTERVAL,
    MEANINGS,
    SCORES,
    class_rows,
    figures_of_changes,
    what_to_do,
)

_MOST_BARS = 60
# Scores that are those of the update, follow from others, or are told by the verdict.
_ELSEWHERE = ("guess", "above_guess", "small_cells_told")


def audit_page(
    record: dict[str, Any],
    others: list[dict[str, Any]],
    *,
    description: str | None = None,
    command: str | None = None,
    advice: dict[str, Any] | None = None,
) -> str:
    """A self-contained HTML page of one update: counts, chart, flags, every attack's score.

    Args:
        record: The audit record to show in full, schema ``labelleak/audit/1``.
        others: Records of other attacks on the same update, for the table of scores.
        description: Data, network and training of the client, in words.
        command: The command line that repeats the audit.
        advice: What changes of the update cost and buy, schema ``labelleak/advice/1``.

    Returns:
        The page, one file with nothing to load.
    """
    rows = class_rows(record)
    charted = rows[:_MOST_BARS] if record["counts"] is not None else []
    # One record alone has its scores in the same table as several.
    scored = others or ([record] if record["score"] else [])
    return render(
        "audit.html",
        record=record,
        others=scored,
        rows=rows,
        chart=counts_chart(charted) if charted else None,
        left_out=len(rows) - len(charted),
        metrics=_columns(scored),
        meanings=MEANINGS,
        description=description,
        command=command,
        interval=INTERVAL,
        intervals=any(row["interval"] for row in rows),
        todo=what_to_do(record, tried=advice is not None),
        advice=advice,
        plain=_figures(record),
        figures=figures_of_changes(advice["changes"] if advice else [], record.get("measure")),
        meanings_of_changes=CHANGES,
        inconclusive=INCONCLUSIVE,
    )


def _columns(records: list[dict[str, Any]]) -> dict[str, str]:
    """Titles of the scores to show; distances of shares only where there are no counts."""
    scores = [one["score"] for one in records if one["score"]]
    counted = any(score.get("accuracy") is not None for score in scores)
    return {
        key: title
        for key, title in SCORES.items()
        if key not in _ELSEWHERE and not (counted and key.startswith("shares_"))
    }


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """What is told of the update as it is; by the attack's own account without labels."""
    figures = record["score"] or record.get("expected") or {}
    return {
        "accuracy": figures.get("accuracy"),
        "advantage": figures.get("relative_advantage"),
        "told": figures.get("small_cells_told"),
    }
