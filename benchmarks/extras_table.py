"""The table of the extras and the versions that they were tried at; used by `claims.py`."""

from typing import Any

from markdown_tables import table
from trust_tables import Read

RECORD = "results/extras.json"
ENDS = ("oldest", "newest")


def extras_tried(read: Read) -> list[str]:
    """What each extra brings at either end of its range, and how it did on each interpreter."""
    rows = read(RECORD)["tried"]
    runs = sorted({_run(row) for row in rows}, key=lambda run: (ENDS.index(run[1]), run))
    found = {(_run(row), row["extra"]): row for row in rows}
    extras = list(dict.fromkeys(row["extra"] for row in rows))
    lines = []
    for extra in extras:
        of_extra = [found.get((run, extra)) for run in runs]
        of_ends = [next(row for row in of_extra if row and row["end"] == end) for end in ENDS]
        shown = [_versions(row, found[_run(row), "none"]) for row in of_ends]
        title = "none" if extra == "none" else f"`{extra}`"
        lines.append([title, *shown, *(row["result"] if row else "not tried" for row in of_extra)])
    headings = [f"Python {python}, {end}" for python, end in runs]
    return table(["extra", "oldest", "newest", *headings], lines)


def _run(row: Any) -> tuple[str, str]:
    return ".".join(row["python"].split(".")[:2]), row["end"]


def _versions(row: Any, alone: Any) -> str:
    """Versions of an extra where they are not the package's own; of the package without one."""
    shown = {
        name: version.partition("+")[0]
        for name, version in row["versions"].items()
        if row is alone or version != alone["versions"].get(name)
    }
    return ", ".join(f"{name} {version}" for name, version in shown.items())
