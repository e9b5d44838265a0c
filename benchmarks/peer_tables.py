"""Tables of the docs on public codes beside labelleak; used by `claims.py`."""

from collections.abc import Callable, Iterator
from statistics import fmean, median
from typing import Any

from markdown_tables import table, three
from measured_tables import Read

PEERS = "results/benchmark-peers.json"
OURS = "labelleak"


def versions(read: Read) -> list[str]:
    """The commit of every public code."""
    return table(
        ["public code", "commit"],
        [
            [
                f"[{code['title']}]({code['address']})",
                f"`{code['commit'][:12]}`" + (", changed" if code["changed"] else "")
                if code["commit"]
                else "not known",
            ]
            for code in read(PEERS)["codes"].values()
        ],
    )


def speed(read: Read) -> list[str]:
    """Time of our attacks as a ratio to the public codes' of the same name."""
    return _beside(read, _ratio, skip_without_ours=True)


def accuracy(read: Read) -> list[str]:
    """Scores of the public codes and of ours on the same batches."""
    return _beside(read, _scores)


def auto(read: Read) -> list[str]:
    """What `auto` reaches on the same batches."""
    lines = []
    for setting in _settings(read):
        row = _row(read, setting, OURS, "auto")
        if row is not None and row["error"] is None:
            score, _ = _score(row, row, len(row["seconds"]))
            lines.append([setting, score, f"{1e3 * median(row['seconds']):.3g}"])
    return table(["setting", "`auto`", "ms"], lines)


def _beside(
    read: Read, cell: Callable[[Any, Any], str], *, skip_without_ours: bool = False
) -> list[str]:
    settings = _settings(read)
    lines = []
    for source, code in read(PEERS)["codes"].items():
        for name, ours in code["attacks"].items():
            if ours is None and skip_without_ours:
                continue
            cells = [
                cell(_row(read, setting, source, name), _row(read, setting, OURS, ours))
                for setting in settings
            ]
            title = f"{code['title'].partition(' (')[0]}: {name}"
            lines.append([title, "–" if ours is None else f"`{ours}`", *cells])
    sizes = [_size(setting) for setting in settings]
    return table(["public code", "ours", *sizes], lines)


def _settings(read: Read) -> list[str]:
    return list(dict.fromkeys(row["setting"] for row in read(PEERS)["rows"]))


def _size(setting: str) -> str:
    return setting.replace(", untrained", "").replace(", K = 24", "")


def _row(read: Read, setting: str, source: str, name: str | None) -> Any:
    found: Iterator[Any] = (
        row
        for row in read(PEERS)["rows"]
        if (row["setting"], row["source"], row["name"]) == (setting, source, name)
    )
    return next(found, None)


def _ratio(theirs: Any, ours: Any) -> str:
    """Ours as a share of theirs, and both in milliseconds, over the batches of both."""
    if theirs is None or ours is None:
        return "left out"
    if theirs["error"] is not None or ours["error"] is not None:
        return "error"
    both = min(len(theirs["seconds"]), len(ours["seconds"]))
    mine, other = (1e3 * median(row["seconds"][:both]) for row in (ours, theirs))
    return f"{mine / other:.2g} ({mine:.3g} of {other:.3g})"


def _scores(theirs: Any, ours: Any) -> str:
    """Scores of theirs and of ours over the batches of both."""
    if theirs is None:
        return "left out"
    if theirs["error"] is not None:
        return "error"
    if ours is None or ours["error"] is not None:
        return f"{_score(theirs, theirs, len(theirs['seconds']))[0]} / –"
    both = min(len(theirs["seconds"]), len(ours["seconds"]))
    return " / ".join(_score(theirs, ours, both))


def _score(theirs: Any, ours: Any, batches: int) -> tuple[str, str]:
    """Mean share of the labels that are right; LeAcc, so marked, where one gives a set alone."""
    sets = any(None in row["accuracy"][:batches] for row in (theirs, ours))
    kind, mark = ("leacc", " LeAcc") if sets else ("accuracy", "")
    first, second = (three(fmean(row[kind][:batches])) for row in (theirs, ours))
    return first + mark * (theirs is ours), second + mark


PEER_TABLES: dict[str, Callable[[Read], list[str]]] = {
    "peer-versions": versions,
    "peer-speed": speed,
    "peer-accuracy": accuracy,
    "peer-auto": auto,
}
"""By the name under which a page asks for it."""
