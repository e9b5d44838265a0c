"""Make the summaries of the recorded results again from their records; nothing is run.

    python benchmarks/summaries.py

Writes `summary.json` and the CSV files in `results/quick` and `results/leaderboard`, as after a
change of what a summary holds. The environment stays that of the recording. Their pages are no part
of the repository: `labelleak report results/leaderboard` writes one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelleak.lab import paper
from labelleak.lab.experiment_grid import grid_study, read_grid
from labelleak.lab.store import read_records
from labelleak.lab.study import Study
from labelleak.lab.summary import summarize
from labelleak.report.experiments import summary_csv
from labelleak.report.run import read_run, run_content
from labelleak.storage import write_json, write_whole
from recorded import ROOT, SOURCES


def main() -> None:
    for name in ("quick", "leaderboard"):
        folder = ROOT / "results" / name
        title, summaries = read_run(folder / "summary.json")
        made = again(folder, summaries)
        write_json(folder / "summary.json", run_content(title, made))
        for summary in made:
            write_whole(folder / f"{summary['name']}.csv", summary_csv(summary))
        print(f"{folder.relative_to(ROOT)}: {len(made)} summaries")


def again(folder: Path, summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summaries of a folder from its records, with what records do not know from the old."""
    records = read_records(folder)
    made = []
    for old in summaries:
        new = summarize(study_of(folder, old), records)
        # Which code made a record is told by the code that is there when it is summarized.
        rows = [
            row | {"earlier": known["earlier"]}
            for row, known in zip(new["rows"], old["rows"], strict=True)
        ]
        made.append({**new, "rows": rows, "environment": old["environment"]})
    return made


def study_of(folder: Path, summary: dict[str, Any]) -> Study:
    if (folder / "grid.toml").exists():
        return grid_study(read_grid(folder / "grid.toml"), summary["name"], summary["title"])
    return paper.study(summary["name"], summary["scale"], SOURCES)


if __name__ == "__main__":
    main()
