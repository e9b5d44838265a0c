"""The page of an audit for a data-protection officer: plain words, to print and to file."""

from typing import Any

from labelleak.report.pages import render
from labelleak.report.text import what_to_do

_VERDICTS = {
    "audited": "No more was found than the limit allows.",
    "over threshold": "More can be told from the update than the limit allows.",
    "inconclusive": "The audit proves nothing either way.",
}
_NO_LIMIT = "The audit says what can be told. No limit was set to judge that by."


def officer_page(record: dict[str, Any], advice: dict[str, Any] | None = None) -> str:
    """A self-contained HTML page for an impact assessment, in words that need no expert.

    Args:
        record: The audit record, schema ``labelleak/audit/1``.
        advice: What changes of the update cost and buy, schema ``labelleak/advice/1``, or None.

    Returns:
        The page, one file with nothing to load. It holds no count of any class.
    """
    return render(
        "officer.html",
        record=record,
        verdict=_verdict(record),
        samples=_samples(record),
        figures=record["score"] or record.get("expected"),
        scored=record["score"] is not None,
        hidden=record.get("hidden"),
        floor=record.get("floor", 10),
        measure=record.get("measure", "accuracy"),
        public=record.get("prior") is not None,
        todo=what_to_do(record, tried=advice is not None, options=False),
        passed=[one for one in (advice or {}).get("changes", []) if one["verdict"] == "audited"],
        advice=advice,
    )


def _verdict(record: dict[str, Any]) -> str:
    shares = record.get("measure", "accuracy") in ("accuracy", "advantage")
    if record["verdict"] == "audited" and shares and record["threshold"] is None:
        return _NO_LIMIT
    return _VERDICTS[record["verdict"]]


def _samples(record: dict[str, Any]) -> int | None:
    """How many records the update was made of, where that is known."""
    if "samples" in record:
        return record["samples"]  # type: ignore[no-any-return]
    # Older audits were of one label for each record.
    known = record["counts"] or record["true_counts"]
    return sum(known) if known else None
