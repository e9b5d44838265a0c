"""What a row of the recorded results has other than the published run, by rule."""

import json
from pathlib import Path

import pytest

import fidelity_tables

ROOT = Path(__file__).parent.parent

PLAIN = {"stands_in_for": None, "split": "train", "shrunk": [], "stage_used": "untrained"}


@pytest.mark.parametrize(
    ("changes", "metric", "expected"),
    [
        ({}, "ilrg.lnacc", "not known; one network"),
        ({"stage_used": "untrained, other weights in each trial"}, "ilrg.lnacc", "not known"),
        ({"shrunk": ["10 trials instead of 50"]}, "ilrg.lnacc", "not known; one network"),
        ({"stands_in_for": "cifar100"}, "ilrg.lnacc", "data"),
        ({"split": "test"}, "ilrg.lnacc", "data"),
        ({"shrunk": ["images of 32 pixels instead of 224"]}, "ilrg.lnacc", "data"),
        (
            {"stands_in_for": "cifar100", "shrunk": ["trained for 260 iterations of 128 samples"]},
            "ilrg.lnacc",
            "data, training",
        ),
        ({"shrunk": ["1 restarts instead of 3"]}, "psnr_best6", "search for images"),
        ({"shrunk": ["1 restarts instead of 3"]}, "ilrg.lnacc", "not known; one network"),
        ({}, "rlg.leacc", "definition of RLG"),
    ],
)
def test_what_differs(changes, metric, expected):
    assert fidelity_tables.what_differs({**PLAIN, **changes}, metric) == expected


def read(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_every_compared_figure_is_counted_once():
    """Against the CSV files beside the summary, which other code writes."""
    lines = [
        line
        for path in (ROOT / "results" / "quick").glob("*.csv")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    inside, outside = (sum(f",{word}," in line for line in lines) for word in ("true", "false"))
    rows = [line.strip("| ").split(" | ") for line in fidelity_tables.by_difference(read)[2:]]
    assert sum(int(row[2]) for row in rows) <= inside
    assert all(int(row[1]) == int(row[2]) + int(row[3]) for row in rows)
    total = sum(int(row[1]) for row in rows)
    assert fidelity_tables.tally(read)[0].startswith(
        f"{sum(int(row[2]) for row in rows)} of the {total} published figures"
    )
    assert outside


def test_every_row_outside_is_listed_with_what_differs():
    listed = {
        tuple(line.strip("| ").split(" | ")[:2]) for line in fidelity_tables.outside(read)[2:]
    }
    wanted = {
        (study["name"], row["label"])
        for study in read(fidelity_tables.QUICK)["studies"]
        for row in study["rows"]
        if any(cell["inside"] is False for cell in row["metrics"].values())
    }
    assert listed == wanted
