"""The recorded summaries follow from the records, and the records from the experiments."""

import json
from pathlib import Path

import pytest

from labelleak.lab import paper
from labelleak.lab.experiment_grid import grid_study, read_grid
from labelleak.lab.keys import definition_of
from labelleak.lab.sources import Source
from labelleak.lab.store import read_records
from labelleak.lab.summary import summarize

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "results" / "quick"
LEADERBOARD = ROOT / "results" / "leaderboard"
# The data sets that were available when they were recorded.
SOURCES = {
    "mnist": Source("mnist"),
    "cifar100": Source("tiny-imagenet-100"),
    "imagenet": Source("imagenet", "test", replacement=True),
}


@pytest.fixture(scope="module")
def records():
    lines = (RECORDED / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def recorded():
    content = json.loads((RECORDED / "summary.json").read_text(encoding="utf-8"))
    return {summary["name"]: summary for summary in content["studies"]}


@pytest.mark.parametrize("name", paper.names())
def test_every_trial_is_recorded_and_the_summary_follows_from_them(name, records, recorded):
    study = paper.study(name, "quick", SOURCES)
    keys = {definition_of(record) for record in records}
    for experiment in study.experiments:
        assert all(experiment.definition_key(index) in keys for index in range(experiment.trials))
    expected = summarize(study, records)
    assert as_recorded(recorded[name]) == as_recorded(expected)


def as_recorded(summary):
    """Without the machine and the code that made the summary, which records do not know."""
    rows = [{**row, "earlier": None} for row in summary["rows"]]
    return json.loads(json.dumps({**summary, "rows": rows, "environment": None}))


def test_nothing_is_recorded_twice(records):
    assert len({record["key"] for record in records}) == len(records)


def test_the_leaderboard_follows_from_its_records():
    """Some trials have not been run yet; the summary says how many."""
    experiments = read_grid(LEADERBOARD / "grid.toml")
    keys = {e.definition_key(index) for e in experiments for index in range(e.trials)}
    made = read_records(LEADERBOARD)
    assert {definition_of(record) for record in made} <= keys
    (found,) = json.loads((LEADERBOARD / "summary.json").read_text(encoding="utf-8"))["studies"]
    expected = summarize(grid_study(experiments, "leaderboard", found["title"]), made)
    assert as_recorded(found) == as_recorded(expected)
