"""Records in words, for pages and terminals alike: titles of scores, numbers, rows of classes."""

from collections.abc import Iterable, Mapping
from typing import Any

SCORES = {
    "accuracy": "accuracy",
    "guess": "guess",
    "above_guess": "above guess",
    "relative_advantage": "advantage",
    "exact": "exact",
    "leacc": "LeAcc",
    "lnacc": "LnAcc",
    "recall": "recall",
    "existence_precision": "precision (set)",
    "existence_recall": "recall (set)",
    "small_cells_told": "small cells told",
    "shares_linf": "largest error of a share",
    "shares_cosine": "cosine distance of shares",
    "shares_js": "Jensen-Shannon distance of shares",
}
"""Title of every field of a score, the most informative first."""

MEANINGS = {
    "accuracy": "share of the labels restored; claiming too many counts against it",
    "guess": "share of the labels that the best guess without the update gets right",
    "above_guess": "accuracy less that of the guess",
    "relative_advantage": "share of what the guess leaves open that was restored; 0 is no better "
    "than the guess, 1 is all",
    "exact": "whether every class has its exact number",
    "leacc": "share of the classes rightly told present or absent",
    "lnacc": "share of the classes with the right number",
    "recall": "share of the labels restored, whatever else is claimed",
    "existence_precision": "share of the classes told present that are",
    "existence_recall": "share of the present classes that are told",
    "small_cells_told": "classes with few samples, or none, that are told as such with confidence",
    "shares_linf": "largest difference of a class's restored and true share; 0 is best",
    "shares_cosine": "one less the cosine of restored and true shares; 0 is best",
    "shares_js": "Jensen-Shannon distance of restored and true shares, to base 2; 0 is best",
}
"""Meaning of every field of a score."""

CHANGES = {
    "cosine": "how much of the update is left: 1 is the same direction, 0 is nothing of it",
    "epsilon": "of differential privacy for this one release, at delta 0.00001, if every update is "
    "clipped to the length of this one (of its final layer, where only that was read). About 1 is "
    "strong, more than 10 is weak, and thousands bound nothing",
    "accuracy": "share of the labels that the attack still restores",
    "advantage": "share of what a guess without the update leaves open that is restored",
    "told": "classes with few samples, or none, that are told as such with confidence",
}
"""Meaning of the figures of a change, as in an advice."""

INCONCLUSIVE = "under the limit, but for a reason that a better attack need not fail for"
"""Meaning of that verdict on a change."""

INTERVAL = "holds the true number 19 times in 20, by the attack's own standard errors"
"""Meaning of the interval of a count or share."""

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


def grouped(value: float | None) -> str:
    """Format a positive figure of any size for a reader: three digits, and no powers of ten.

    Args:
        value: The figure, infinite or not; None where there is none.

    Examples:
        >>> grouped(15073397.7), grouped(0.8234), grouped(7.9999999)
        ('15,100,000', '0.823', '8')
    """
    return NONE if value is None else f"{float(f'{value:.3g}'):,.15g}"


def scores_of_all_batches(
    metrics: Mapping[str, Any], attack: str, names: Iterable[str]
) -> dict[str, Any]:
    """The scores of an attack that every batch has.

    An attack that restores sets has counts where only one possibility is left. Their mean over
    those batches says nothing about the others.

    Args:
        metrics: Those of a row of a summary, schema ``labelleak/study/1``.
        attack: Name of the attack.
        names: Of the scores.

    Returns:
        The cell of each score, or None.
    """
    cells = {name: metrics.get(f"{attack}.{name}") for name in names}
    most = max((cell["trials"] for cell in cells.values() if cell), default=0)
    return {name: cell if cell and cell["trials"] == most else None for name, cell in cells.items()}


def class_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per class for the table of an audit record.

    Args:
        record: An audit record, schema ``labelleak/audit/1``.

    Returns:
        A row for each class that is in the batch or was found; for every class, if there are at
        most 20. Its keys: ``label``; the counts ``true`` and ``restored``, None where they are not
        known; ``text``, what was restored, as a count, a share or whether the class is present;
        and ``wrong``, whether the counts differ; ``interval``, the 95% interval of a count in
        words or empty, and ``low`` and ``high``, its ends, which are the count where there is none.
    """
    true, counts, shares = record["true_counts"], record["counts"], record["proportions"]
    present = set(record["present"])
    shown = present | {label for label, amount in enumerate(true or []) if amount}
    if record["classes"] <= _ALL_SHOWN:
        shown = set(range(record["classes"]))
    intervals = record.get("intervals") if counts else None
    rows = []
    for label in sorted(shown):
        if counts:
            text = str(counts[label])
        elif shares:
            text = f"{shares[label]:.1%}"
        else:
            text = "present" if label in present else NONE
        low = high = float(counts[label]) if counts else 0.0
        if intervals:
            low, high = (max(0.0, float(end)) for end in intervals[label])
        rows.append(
            {
                "interval": f"{low:.1f} to {high:.1f}" if intervals else "",
                "low": low,
                "high": max(high, low),
                "label": label,
                "true": true[label] if true else None,
                "restored": counts[label] if counts else None,
                "text": text,
                "wrong": bool(true and counts and true[label] != counts[label]),
            }
        )
    return rows


def what_to_do(
    record: Mapping[str, Any], *, tried: bool = False, options: bool = True
) -> list[str]:
    """What a reader can do about an audit: a sentence each, the most useful first.

    Args:
        record: An audit record, schema ``labelleak/audit/1``.
        tried: Whether changes of the update have been tried already.
        options: Whether to say what to type.

    Returns:
        Clauses without a full stop. Those about flags begin with the flag's name.
    """
    advice = []
    if record["verdict"] == "over threshold" and not tried:
        advice.append(
            "labelleak advise, with the options of this audit, tries changes on this very update, "
            "and says what each costs and buys"
        )
    known = record["true_counts"] is not None
    shares = record.get("measure", "accuracy") in ("accuracy", "advantage")
    if known and shares and record["threshold"] is None:
        by_guess = record.get("measure") == "advantage"
        half = "at most half of " + ("what a guess leaves open" if by_guess else "the labels")
        typed = f"{'--measure advantage ' if by_guess else ''}--threshold 0.5"
        advice.append(
            f"set a limit, and this becomes a verdict: {typed} lets {half} be restored; above it "
            "the exit status is 1"
            if options
            else f"set a limit, and this becomes a verdict: {half}, for example"
        )
    if not known:
        given = " (--labels labels.txt)" if options else ""
        advice.append(f"give the site's own labels{given} to see how much of this is right")
    remedies: dict[str, list[str]] = {}
    for flag in record["flags"]:
        if flag.get("remedy"):
            typed = f" ({flag['options']})" if options and flag.get("options") else ""
            remedies.setdefault(f"{flag['remedy']}{typed}", []).append(flag["name"])
    return [*advice, *(f"{', '.join(names)}: {text}" for text, names in remedies.items())]


def figures_of_changes(changes: Iterable[Mapping[str, Any]], measure: str | None) -> dict[str, str]:
    """Titles of the figures that tell what a change buys: the ones that some change has.

    Args:
        changes: Those of an advice, schema ``labelleak/advice/1``.
        measure: What is judged; None where a record is older than the measures.

    Examples:
        >>> figures_of_changes([{"accuracy": 0.5, "advantage": None, "told": 2}], "small-cells")
        {'told': 'told', 'accuracy': 'restored'}
    """
    titles = {"accuracy": "restored", "advantage": "advantage"}
    if measure == "small-cells":
        titles = {"told": "told", "accuracy": "restored"}
    changes = list(changes)
    return {
        key: title
        for key, title in titles.items()
        if any(change.get(key) is not None for change in changes)
    }


def advice_in(content: object) -> dict[str, Any] | None:
    """What was read from a file, if it is an advice of this version; else None.

    Args:
        content: Plain data.
    """
    if isinstance(content, dict) and content.get("schema") == "labelleak/advice/1":
        audited = content.get("audit")
        if isinstance(audited, dict) and audited.get("schema") == "labelleak/audit/1":
            return content
    return None
