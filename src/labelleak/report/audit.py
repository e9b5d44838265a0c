"""The page of one audited update."""

from typing import Any

from labelleak.report.charts import counts_chart
from labelleak.report.pages import render

_METRICS = {
    "accuracy": "Accuracy",
    "exact": "Exact",
    "leacc": "LeAcc",
    "lnacc": "LnAcc",
    "recall": "Recall",
    "existence_precision": "Precision (set)",
    "existence_recall": "Recall (set)",
}
_MOST_BARS = 60


def audit_page(
    record: dict[str, Any],
    others: list[dict[str, Any]],
    *,
    description: str | None = None,
    command: str | None = None,
) -> str:
    """A self-contained HTML page of one update: counts, chart, flags, every attack's score.

    Args:
        record: The audit record to show in full.
        others: Records of other attacks on the same update, for the table of scores.
        description: What was trained on what.
        command: The command line that repeats the audit.

    Returns:
        The page, one file with nothing to load.
    """
    rows = _rows(record)
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
        metrics=_METRICS,
        description=description,
        command=command,
    )


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per class that is present in truth or restored; all classes where they are few."""
    true, counts, shares = record["true_counts"], record["counts"], record["proportions"]
    present = set(record["present"])
    shown = present | {label for label, number in enumerate(true or []) if number}
    if record["classes"] <= 20:
        shown = set(range(record["classes"]))
    return [
        {
            "label": label,
            "true": true[label] if true else None,
            "restored": counts[label] if counts else None,
            "share": shares[label] if shares else None,
            "present": label in present,
        }
        for label in sorted(shown)
    ]
