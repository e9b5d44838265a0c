"""The fuzzing benchmark: made-up observations, what is judged wrong, and that a run resumes."""

import json
import sys

import pytest
import torch

import fuzz


@pytest.mark.parametrize("mode", ["truth", "lie", "limits", "confident", "whole", "whole-lie"])
def test_a_seed_makes_the_same_observation_every_time(mode):
    first, again = fuzz.MODES[mode](3), fuzz.MODES[mode](3)
    assert first.facts == again.facts
    assert torch.equal(first.observation.gradient.weight, again.observation.gradient.weight)
    if mode in ("truth", "confident", "whole"):
        assert first.observation.batch_size in (None, int(first.counts.sum()))


def test_more_than_there_is_is_judged_wrong():
    made = fuzz.truth(700074)
    found = fuzz.labelleak.restore(made.observation, "exact")
    assert fuzz.judged(made, found)["too_high"] == 0
    fewer = made._replace(counts=torch.zeros_like(made.counts))
    assert fuzz.judged(fewer, found)["too_high"] == int(found.certain.sum()) > 0


def test_a_run_resumes_where_it_was_cut_off(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    row = {"seed": 0, "limit": 2.0, "refused": "no", "seconds": 0.1, "late": False}
    rows.write_text(json.dumps(row) + "\n" + '{"seed": 1, "lim')
    asked = []
    monkeypatch.setattr(
        fuzz, "row_of", lambda seed, mode: asked.append(seed) or {**row, "seed": seed}
    )
    argv = ["fuzz.py", "truth", "--seeds", "3", "--rows", str(rows)]
    output = tmp_path / "fuzz.json"
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(output)])
    fuzz.main()
    assert asked == [1, 2]
    assert [json.loads(line)["seed"] for line in rows.read_text().splitlines()] == [0, 1, 2]
    recorded = json.loads(output.read_text())["modes"]["truth"]
    assert (recorded["restorations"], recorded["refused"]) == (3, 3)
