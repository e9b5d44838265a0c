"""The page of a federation: what each client gave away in each round."""

from collections import Counter
from pathlib import Path
from typing import Any

from labelleak.report.pages import embedded, held_to_schema, render

VERDICTS = {
    "over": "more than the policy allows",
    "failed": "not audited, or not all of it",
    "inconclusive": "no evidence either way",
    "within": "what the policy allows",
}
"""Meaning of every verdict of a round, the gravest first."""

# What a record calls sent was not refused by that audit, and may have been by the next.
_ACTIONS = {"sent": "let pass"}


def rounds_page(
    records: list[dict[str, Any]],
    title: str = "What each round gave away",
    *,
    most_classes: int = 300_000,
    source: Path | str = "the records of rounds",
) -> str:
    """A self-contained HTML page of the audits in a federation, with filters.

    Args:
        records: Records of rounds, schema ``labelleak/round/1``, in any order; at least one.
        title: Heading of the page.
        most_classes: Leave the classes of each audit out of the page where all audits together
            have more than these, as the page would be slow to open.
        source: The file or folder that they are from, for a message.

    Returns:
        The page, one file with nothing to load. It contains the true counts of the records.

    Raises:
        UnreadableFile: A value of a record is missing, or of another type than its schema says.
    """
    with held_to_schema(source):
        return _page(records, title, most_classes)


def _page(records: list[dict[str, Any]], title: str, most_classes: int) -> str:
    records = sorted(records, key=lambda record: (record["round"], record["client"]))
    detailed = sum(len(_classes(record)) for record in records) <= most_classes
    texts: dict[str, int] = {}
    rows = [_row(record, texts, detailed) for record in records]
    amounts = Counter(record["verdict"] for record in records)
    return render(
        "rounds.html",
        title=title,
        audits=len(records),
        clients=len({record["client"] for record in records}),
        rounds=len({record["round"] for record in records}),
        runs=len({record.get("run", "") for record in records}),
        amounts={verdict: amounts[verdict] for verdict in VERDICTS},
        refused=sum(record["action"] == "refused" for record in records),
        worst=_worst(records),
        meanings=VERDICTS,
        first=min(record["time"] for record in records),
        last=max(record["time"] for record in records),
        versions=sorted({record["version"] for record in records}),
        known=any(record.get("known") for record in records),
        spent=any(record["epsilon"] is not None for record in records),
        private=any((record["audit"] or {}).get("true_counts") for record in records),
        detailed=detailed,
        data=embedded({"texts": list(texts), "rows": rows}),
    )


def _worst(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record with the largest accuracy, if any has one."""
    known = [record for record in records if _score(record, "accuracy") is not None]
    return max(known, key=lambda record: _score(record, "accuracy"), default=None)


def _score(record: dict[str, Any], name: str) -> Any:
    return ((record["audit"] or {}).get("score") or {}).get(name)


def _row(record: dict[str, Any], texts: dict[str, int], detailed: bool) -> list[Any]:
    """One record in the order of the page's script, with an index in place of each text."""

    def number(text: object) -> int:
        return texts.setdefault(str(text), len(texts))

    audit = record["audit"] or {}
    accuracy, policy = _score(record, "accuracy"), record["policy"]
    advantage = _score(record, "relative_advantage")
    counts = audit.get("counts")
    size = audit.get("batch_size")
    return [
        record["round"],
        number(record["client"]),
        number(record["label"]),
        number(record["framework"]),
        number(record["verdict"]),
        number(_ACTIONS.get(record["action"], record["action"])),
        number(audit.get("attack") or policy["attack"]),
        None if accuracy is None else round(accuracy, 4),
        _score(record, "exact"),
        bool(audit.get("certified")),
        None if counts is None else sum(counts),
        len(audit.get("present") or []),
        record["epsilon"],
        record["delta"],
        policy["threshold"] if policy["measure"] == "accuracy" else None,
        number(record["reason"]),
        [number(_flag(flag)) for flag in audit.get("flags") or []],
        number(record["time"]),
        [
            number(text)
            for text in (
                f"{policy['action']}, measured by {policy['measure']}, attack {policy['attack']}",
                _training(size, audit, record["aggregate_of"]),
                *(audit.get("source") or {}).get("approximations", []),
                *map(_leak, record.get("leaks", [])),
            )
            if text
        ],
        _classes(record) if detailed else [],
        number(record.get("run", "")),
        None if advantage is None else round(max(0.0, advantage), 4),
        policy["threshold"] if policy["measure"] == "advantage" else None,
        _share_known(record),
        number(_known(record)),
    ]


def _share_known(record: dict[str, Any]) -> float | None:
    """Share of the labels that all rounds so far tell together, by the attack where need be."""
    known = record.get("known") or {}
    by = known.get("score") or known.get("expected") or {}
    return None if by.get("accuracy") is None else round(by["accuracy"], 4)


def _known(record: dict[str, Any]) -> str:
    """What the server knows after a round, in a sentence; empty where that was not combined."""
    known, share = record.get("known"), _share_known(record)
    if not known:
        return ""
    after = f"After round {record['round']} the server knows"
    if share is None:
        return f"{after} what no score says: {known['reason']}"
    own = "" if known["score"] else ", by the attack's own standard errors"
    return f"{after} {share:.1%} of the labels{own}: {known['reason']}"


def _flag(flag: dict[str, str]) -> str:
    """Name and text, and what to do where the record says so."""
    remedy = flag.get("remedy")
    return f"{flag['name']}: {flag['text']}" + (f". To do: {remedy}" if remedy else "")


def _leak(leak: dict[str, str]) -> str:
    return f"{leak['where']} tells the {leak['what'].removeprefix('a ')}: {leak['why']}"


def _training(size: int | None, audit: dict[str, Any], aggregate_of: int | None) -> str:
    if not audit:
        return ""
    steps = audit["local_steps"]
    text = f"{steps} local {'step' if steps == 1 else 'steps'}"
    text += f", batches of {size}" if size is not None else ", batch size unknown"
    return text + (f", the sum of {aggregate_of} clients" if aggregate_of is not None else "")


def _classes(record: dict[str, Any]) -> list[list[int | float | None]]:
    """Label, restored and true number of each class that is in the batch or was found."""
    audit = record["audit"] or {}
    true, counts, shares = (audit.get(key) for key in ("true_counts", "counts", "proportions"))
    shown = {*(audit.get("present") or [])}
    shown |= {label for label, amount in enumerate(true or []) if amount}
    return [
        [
            label,
            counts[label] if counts else round(shares[label], 3) if shares else None,
            true[label] if true else None,
        ]
        for label in sorted(shown)
    ]
