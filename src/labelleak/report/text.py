"""Records in words, for pages and terminals alike: titles of scores, numbers, rows of classes."""

from collections.abc import Mapping
from typing import Any

SCORES = {
    "accuracy": "accuracy",
    "exact": "exact",
    "leacc": "LeAcc",
    "lnacc": "LnAcc",
    "recall": "recall",
    "existence_precision": "precision (set)",
    "existence_recall": "recall (set)",
}
"""Title of every field of a score, the most informative first."""

MEANINGS = {
    "accuracy": "share of the labels restored; claiming too many counts against it",
    "exact": "whether every class has its exact number",
    "leacc": "share of the classes rightly told present or absent",
    "lnacc": "share of the classes with the right number",
    "recall": "share of the labels restored, whatever else is claimed",
    "existence_precision": "share of the classes told present that are",
    "existence_recall": "share of the present classes that are told",
}
"""Meaning of every field of a score; all but ``exact`` are in [0, 1]."""

NONE = "-"
"""The text where there is no value."""

_ALL_SHOWN = 20


def number(value: float | bool | None, *, fixed: bool = True, signed: bool = False) -> str:
    """Format a figure for a reader, in ASCII.

    Args:
        value: The figure; None where there is none.
        fixed: Three digits after the point, as for scores in [0, 1]; otherwise three significant
            digits (two for a difference).
        signed: The figure is a difference: a plus sign where it is positive.

    Returns:
        The text; yes or no for a truth value.

    Examples:
        >>> number(0.12345), number(1.7234e-11, fixed=False), number(0.25, signed=True)
        ('0.123', '1.72e-11', '+0.250')
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:+.3f}" if fixed else f"{value:+.{2 if signed else 3}g}"
    if float(text) == 0.0:
        return "0.000" if fixed else "0"
    mantissa, _, exponent = (text if signed else text.removeprefix("+")).partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def class_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per class for the table of an audit record.

    Args:
        record: An audit record, schema ``labelleak/audit/1``.

    Returns:
        A row for each class that is in the batch or was found; for every class, if there are at
        most 20. Its keys: ``label``; the counts ``true`` and ``restored``, None where they are not
        known; ``text``, what was restored, as a count, a share or whether the class is present;
        and ``wrong``, whether the counts differ.
    """
    true, counts, shares = record["true_counts"], record["counts"], record["proportions"]
    present = set(record["present"])
    shown = present | {label for label, amount in enumerate(true or []) if amount}
    if record["classes"] <= _ALL_SHOWN:
        shown = set(range(record["classes"]))
    rows = []
    for label in sorted(shown):
        if counts:
            text = str(counts[label])
        elif shares:
            text = f"{100 * shares[label]:.1f} %"
        else:
            text = "present" if label in present else NONE
        rows.append(
            {
                "label": label,
                "true": true[label] if true else None,
                "restored": counts[label] if counts else None,
                "text": text,
                "wrong": bool(true and counts and true[label] != counts[label]),
            }
        )
    return rows
