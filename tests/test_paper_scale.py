"""Pieces of the paper's own scale: interrupted at the end of their time, and taken up again."""

import argparse
import signal
import subprocess

import pytest

import paper_scale
from labelleak.lab.sources import PUBLISHED_SOURCES


def test_the_study_with_long_trials_is_last():
    assert paper_scale.STUDIES[-1] == "figure4"
    assert sorted(paper_scale.STUDIES) == sorted(paper_scale.paper.names())


@pytest.mark.parametrize(
    ("waits", "sent"),
    [
        (["ends"], []),
        (["late", "ends"], [signal.SIGINT]),
        (["late", "late", "ends"], [signal.SIGINT, signal.SIGKILL]),
    ],
)
def test_a_piece_is_interrupted_as_by_a_key(monkeypatch, waits, sent):
    """With a process of the test's own, so that no clock decides."""
    got, left = [], list(waits)

    class Process:
        def __init__(self, command):
            self.command = command

        def wait(self, seconds=None):
            if left.pop(0) == "late":
                raise subprocess.TimeoutExpired(self.command, seconds)

        def send_signal(self, number):
            got.append(number)

        def kill(self):
            got.append(signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", Process)
    paper_scale.run_piece(["labelleak"], 600.0)
    assert got == sent
    assert not left


def given(folder, **changes):
    usual = {"studies": ["table3", "table4"], "data_dir": None, "out": folder, "minutes": 1.0}
    usual |= {"device": "cpu", "workers": 1}
    return argparse.Namespace(**(usual | changes))


@pytest.fixture
def pieces(monkeypatch):
    """Studies of three trials, of which a piece makes two, and the commands that were run."""
    made, commands = {"table3": 0, "table4": 0}, []

    def run_piece(command, seconds):
        commands.append(command)
        name = command[command.index("reproduce") + 1]
        made[name] = min(3, made[name] + 2)

    monkeypatch.setattr(paper_scale, "open_trials", lambda name, *_: 3 - made[name])
    monkeypatch.setattr(paper_scale, "run_piece", run_piece)
    return commands


def test_a_run_goes_on_until_every_study_is_whole(pieces, tmp_path, capsys):
    assert paper_scale.run(given(tmp_path)) == 1
    assert "table3: 1 trials to go" in capsys.readouterr().out
    assert paper_scale.run(given(tmp_path)) == 0
    assert "table4: whole" in capsys.readouterr().out
    assert len(pieces) == 4
    assert paper_scale.run(given(tmp_path)) == 0
    assert len(pieces) == 4
    assert pieces[0][-6:] == [
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "table3"),
        "--workers",
        "1",
    ]


def test_no_study_starts_after_the_end_of_the_piece(pieces, tmp_path):
    assert paper_scale.run(given(tmp_path, minutes=0.0)) == 1
    assert pieces == []


def test_trials_without_a_record_are_counted(tmp_path, monkeypatch):
    (tmp_path / "records.jsonl").write_text("")
    monkeypatch.setattr(paper_scale, "find_sources", lambda data_dir: PUBLISHED_SOURCES)
    few = paper_scale.experiments("table4", None)
    assert paper_scale.open_trials("table4", None, tmp_path) == sum(one.trials for one in few)
    monkeypatch.setattr(paper_scale, "read_records", lambda path: [{"key": few[0].trial_key(0)}])
    assert paper_scale.open_trials("table4", None, tmp_path) == sum(one.trials for one in few) - 1
