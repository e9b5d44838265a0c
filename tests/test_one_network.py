"""Many networks beside a published one: which rows, which networks, and how far one more may be."""

import json
import random
from pathlib import Path

import fidelity_tables
import one_network
from labelleak.lab import paper

ROOT = Path(__file__).parent.parent


def test_one_more_figure_is_inside_as_often_as_it_says():
    drawn = random.Random(1)
    inside = 0
    for _ in range(2000):
        *known, new = (drawn.gauss(0.5, 0.1) for _ in range(9))
        low, high = one_network.spread(known)
        inside += low <= new <= high
    assert 0.935 < inside / 2000 < 0.965


def test_rows_are_those_of_one_network_with_a_figure_outside():
    found = one_network.rows_of_one_network()
    listed = {
        tuple(line.strip("| ").split(" | ")[:2])
        for line in fidelity_tables.outside(
            lambda path: json.loads((ROOT / path).read_text(encoding="utf-8"))
        )[2:]
        if line.endswith("one network |")
    }
    assert {(study, label) for study, label, _ in found} == listed


def test_another_seed_is_another_network_and_training():
    row = next(row for row in paper.study("figure2", "paper").rows if row.experiment.training)
    one, other = (one_network.with_seed(row.experiment, seed) for seed in (101, 102))
    assert one.network.seed == one.training.seed == 101
    assert one.batch == other.batch
    assert one.trial_key(0) != other.trial_key(0) != row.experiment.trial_key(0)
