"""The table of how long pages take; used by `claims.py`."""

from markdown_tables import table
from trust_tables import Read


def page_times(read: Read) -> list[str]:
    """Size of each page, and the seconds to make it and to open it."""
    return table(
        ["page", "kB", "made in, s", "opened in, s"],
        [
            [
                row["page"],
                f"{row['bytes'] / 1000:.0f}",
                f"{row['seconds_to_make']:.2f}",
                f"{row['seconds_to_open']:.2f}",
            ]
            for row in read("results/benchmark-rendering.json")["rows"]
        ],
    )
