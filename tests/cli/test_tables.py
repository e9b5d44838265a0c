import io

import pytest
from rich.console import Console

import labelleak
from experiments import experiment
from labelleak.cli.attacks import _row
from labelleak.cli.tables import (
    print_attacks,
    print_comparison,
    print_inversion,
    print_study,
)
from labelleak.cli.verdicts import print_record
from labelleak.lab import paper
from labelleak.lab.experiment_grid import grid_study
from labelleak.lab.summary import summarize


@pytest.fixture
def terminal():
    """A narrow terminal that keeps what it shows."""
    return Console(
        width=80, file=io.StringIO(), markup=False, emoji=False, highlight=False, no_color=True
    )


def test_the_list_of_attacks_fits_a_narrow_terminal(terminal):
    print_attacks([_row(entry) for entry in labelleak.list_attacks().values()], terminal)
    lines = terminal.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "ilrg: iLRG (instance-wise label restoration)" in lines


def test_names_from_files_are_no_markup(terminal):
    name = "[red]fc[/red] :bomb: [/]"
    print_record(
        {
            "attack": name, "classes": 2, "features": 3, "head": name, "batch_size": 1,
            "local_steps": 1, "present": [0], "counts": [1, 0], "proportions": None,
            "true_counts": None,
            "score": None, "threshold": None, "seconds": 0.1, "verdict": "audited",
            "flags": [{"name": "set_only", "text": name}], "reason": name,
        },
        terminal,
    )  # fmt: skip
    assert " ".join(terminal.file.getvalue().split()).count(name) == 4


def test_rows_of_an_earlier_run_are_named(terminal):
    of = experiment(trials=1)
    score = dict.fromkeys(("leacc", "lnacc", "recall", "accuracy", "exact"), 1.0)
    entry = {"counts": score, "rounded": None, "certified": False, "error": None}
    made = {"key": of.definition_key(0), "attacks": {"ilrg": entry}, "measures": {}}
    print_comparison(summarize(grid_study([of], "grid", "Grid"), [made]), terminal)
    text = " ".join(terminal.file.getvalue().split())
    assert text.endswith("From an earlier run, by another version of the code: all rows")


def test_a_comparison_says_first_which_attack_is_best(terminal):
    of = experiment(attacks=("ilrg", "llg"), trials=2)
    scores = {
        name: dict.fromkeys(("leacc", "lnacc", "recall", "accuracy"), value) | {"exact": False}
        for name, value in (("ilrg", 0.75), ("llg", 0.5))
    }
    entry = {"rounded": None, "certified": False, "error": None}
    records = [
        {
            "key": of.trial_key(index),
            "attacks": {name: entry | {"counts": score} for name, score in scores.items()},
            "measures": {},
        }
        for index in range(2)
    ]
    summary = summarize(grid_study([of], "grid", "Grid"), records)
    print_comparison(summary, terminal)
    lines = terminal.file.getvalue().splitlines()
    assert lines[:2] == ["Grid", "ilrg restores the most labels."]
    assert "a, 2 trials" in lines
    rows = [line.split() for line in lines if line.startswith((" ilrg", " llg"))]
    # LeAcc, LnAcc, IRec, accuracy, exact: on a narrow terminal without an interval.
    assert rows == [
        ["ilrg", *["0.750"] * 4, "0.000"],
        ["llg", *["0.500"] * 4, "0.000"],
    ]
    assert max(map(len, lines)) <= 80


def test_a_study_says_first_what_agrees_and_explains_its_intervals_once(terminal):
    study = paper.study("table1", "paper")
    summary = summarize(study, [])
    row = summary["rows"][0]
    for name, inside in (("ilrg.leacc", True), ("ilrg.lnacc", False)):
        row["metrics"][name] |= {"ours": 0.5, "low": 0.4, "high": 0.6, "inside": inside}
    for explained in (False, True):
        print_study(summary, terminal, explained=explained)
    text = " ".join(terminal.file.getvalue().split())
    assert text.startswith(f"{study.title}. 1 of 2 published figures are inside our 95% interval.")
    assert text.count("Student's t") == 1


INVERSION = {
    "seconds": 1.25,
    "result": {
        "method": "ig", "mode": "restored", "attack": "exact", "distance": 0.01234,
        "iterations": 60, "interrupted": False, "flags": ["no_bias"],
    },
}  # fmt: skip


def test_an_inversion_says_what_was_done_and_how_near_it_came(terminal):
    print_inversion(INVERSION, {"psnr": 20.456, "ssim": 0.5, "lpips": None}, terminal)
    text = " ".join(terminal.file.getvalue().split())
    assert text.startswith(
        "Method ig; labels restored by exact; distance 0.0123 after 60 iterations; 1.2 s "
        "flag no_bias: the head has no bias gradient"
    )
    assert text.endswith("Mean PSNR 20.46 dB, SSIM 0.500, LPIPS not available")


def test_an_inversion_that_was_ended_says_so(terminal):
    result = INVERSION["result"] | {"interrupted": True, "mode": None, "flags": []}
    print_inversion(INVERSION | {"result": result}, None, terminal)
    text = " ".join(terminal.file.getvalue().split())
    assert text.endswith("1.2 s, interrupted: the best so far")


@pytest.mark.parametrize(("trials", "shown"), [(1, False), (5, False), (6, True)])
def test_a_mean_of_few_trials_has_no_interval(trials, shown):
    target = Console(width=120, file=io.StringIO(), markup=False, no_color=True)
    of = experiment(trials=trials)
    entry = {"rounded": None, "certified": False, "error": None}
    fields = ("leacc", "lnacc", "recall", "accuracy", "exact")
    records = [
        {
            "key": of.trial_key(index),
            "attacks": {"ilrg": entry | {"counts": dict.fromkeys(fields, 0.5 + 0.01 * index)}},
            "measures": {},
        }
        for index in range(trials)
    ]
    print_comparison(summarize(grid_study([of], "grid", "Grid"), records), target)
    assert ("\N{PLUS-MINUS SIGN}" in target.file.getvalue()) is shown
