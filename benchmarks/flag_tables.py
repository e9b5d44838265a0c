"""Tables of the docs about flags and verdicts, from the leaderboard's trials; for `claims.py`."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labelleak.lab.store import read_records
from labelleak.restoration import UNRELIABLE
from markdown_tables import table
from measured_tables import Read

FOLDER = "results/leaderboard"


def trials(read: Read, attack: str) -> Iterator[tuple[Any, Any]]:
    """The row of the leaderboard, and the outcome of an attack, of every trial that it shows."""
    rows = {row["label"]: row for row in read(f"{FOLDER}/summary.json")["studies"][0]["rows"]}
    for made in read_records(Path(__file__).parent.parent / FOLDER):
        row, outcome = rows.get(made["experiment"]), made["attacks"].get(attack)
        shown = row is not None and str(made.get("code", "not recorded")) in row["code"]
        if shown and outcome is not None and outcome["error"] is None:
            yield row, outcome


def _is_wrong(outcome: Any) -> bool:
    return outcome["counts"] is None or not outcome["counts"]["exact"]


def _is_far(outcome: Any) -> bool:
    return outcome["counts"] is None or outcome["counts"]["accuracy"] < 0.9


def verdicts(read: Read) -> list[str]:
    """How often auto was right, by what it says."""
    unreliable = {flag.name.lower() for flag in UNRELIABLE}
    total, wrong, far = Counter[str](), Counter[str](), Counter[str]()
    for _, outcome in trials(read, "auto"):
        flags = set(outcome["flags"])
        if outcome["certified"]:
            kind = "certified"
        elif flags & unreliable:
            kind = "an unreliable flag"
        else:
            kind = "flags, none of them unreliable" if flags else "no flag, not certified"
        total[kind] += 1
        wrong[kind] += _is_wrong(outcome)
        far[kind] += _is_far(outcome)
    kinds = (
        "certified", "no flag, not certified", "flags, none of them unreliable",
        "an unreliable flag",
    )  # fmt: skip
    return table(
        ["verdict", "batches", "a count wrong", "less than 90 % of the labels right"],
        [[kind, str(total[kind]), str(wrong[kind]), str(far[kind])] for kind in kinds],
    )


def not_integral(read: Read) -> list[str]:
    """How often `not_integral` is raised on results of iLRG, by how right they are."""
    total, flagged = Counter[str](), Counter[str]()
    for _, outcome in trials(read, "ilrg"):
        kinds = ["at least one count wrong" if _is_wrong(outcome) else "every count right"]
        kinds += ["less than 90 % of the labels right"] if _is_far(outcome) else []
        for kind in kinds:
            total[kind] += 1
            flagged[kind] += "not_integral" in outcome["flags"]
    return table(
        ["batches", "of these", "flagged"],
        [
            [kind, str(total[kind]), f"{100 * flagged[kind] / total[kind]:.0f} %"]
            for kind in sorted(total, key=lambda kind: -total[kind])
        ],
    )


def defenses_seen(read: Read) -> list[str]:
    """How often auto suspects a defense, by what was done."""
    total, flagged, doubted = Counter[str](), Counter[str](), Counter[str]()
    unreliable = {flag.name.lower() for flag in UNRELIABLE}
    for row, outcome in trials(read, "auto"):
        if row.get("local"):
            what = "none, several local steps"
        else:
            trained = "untrained" if row["stage_used"].startswith("untrained") else "trained"
            what = f"{row['defense'] or 'none'}, {trained}"
        total[what] += 1
        flagged[what] += "defense_suspected" in outcome["flags"]
        doubted[what] += bool(set(outcome["flags"]) & unreliable)
    return table(
        ["the client's defense, the network", "batches", "`defense_suspected`", "unreliable"],
        [
            [what, str(total[what]), str(flagged[what]), str(doubted[what])]
            for what in sorted(total, key=lambda what: (not what.startswith("none"), what))
        ],
    )


FLAGS: dict[str, Callable[[Read], list[str]]] = {
    "verdicts": verdicts,
    "not-integral": not_integral,
    "defenses": defenses_seen,
}
"""By the name under which a page asks for it."""
