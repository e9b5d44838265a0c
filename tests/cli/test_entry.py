import os
import subprocess
import sys

import click
import pytest

from command_line import labelleak
from labelleak.cli import entry
from labelleak.cli.group import command_group
from labelleak.errors import InvalidObservation


@pytest.fixture
def failing(monkeypatch):
    """Runs a command that raises an error."""

    def run_failing(error):
        def fail():
            raise error

        command = click.Command("fail", callback=fail)
        monkeypatch.setitem(command_group.commands, "fail", command)
        return labelleak("fail")

    return run_failing


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InvalidObservation("what is wrong"), 2, "what is wrong"),
        (OSError(28, "No space left", "/full"), 2, "/full: No space left"),
        (MemoryError(), 2, "not enough memory"),
        (click.ClickException("not this"), 2, "not this"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("interrupted: go on"), 130, "interrupted: go on"),
        (
            ModuleNotFoundError("No", name="matplotlib.figure"),
            2,
            "this command needs matplotlib: pip install 'labelleak[cli,report]'",
        ),
        (
            ModuleNotFoundError("No", name="rich"),
            2,
            "this command needs rich: pip install 'labelleak[cli]'",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_and_no_verdict(failing, error, status, line):
    assert failing(error) == (status, "", f"labelleak: {line}\n")


def test_several_problems_of_a_file_are_a_line_each(failing):
    assert failing(InvalidObservation("one\ntwo\x1b[31m")).err == "labelleak: one\ntwo [31m\n"


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        RuntimeError("a\x1b[31m\r\nb"),
        ValueError("x" * 10**5),
        ModuleNotFoundError("No", name="other"),
        AssertionError(),
        # A library that ends the process by itself, with the status of a verdict.
        SystemExit(1),
        click.exceptions.Abort(),
    ],
)
def test_a_bug_is_told_with_its_traceback(failing, error):
    done = failing(error)
    assert (done.status, done.out) == (70, "")
    lines = done.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "    raise error" in lines
    assert lines[-1].startswith(
        "labelleak: internal error: this is a bug of labelleak; please report it with the command "
        f"and the lines above: {type(error).__name__}("
    )
    assert max(map(len, lines)) < 1200
    assert "\x1b" not in done.err


def test_who_stops_reading_gets_no_verdict_and_no_error(failing, monkeypatch):
    done = []
    monkeypatch.setattr(entry.os, "dup2", lambda source, target: done.append(target))
    assert failing(BrokenPipeError()) == (141, "", "")
    assert done == [1]


@pytest.mark.parametrize("words", [["--help"], ["attacks"], ["attacks", "--format", "json"]])
def test_a_closed_pipe_is_141(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "labelleak", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_nobody_who_reads_errors_changes_no_status():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "labelleak", "none"], stderr=writer, timeout=300, check=False
    )
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Missing command; see labelleak --help"),
        (("adit",), "No such command 'adit'"),
        (("--color",), "No such option '--color'"),
        (("audit",), "Missing option '--before'; see labelleak audit --help"),
        (("audit", "--wide"), "No such option '--wide'"),
        (("audit", "--batch-size", "many"), "Invalid value for '--batch-size'"),
        (("audit", "--before", "a\nb"), "'a b' has control characters"),
        (("reproduce",), "Missing argument"),
        (("demo", "--out", __file__), "is a file; see labelleak demo --help"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(words, message):
    status, out, err = labelleak(*words)
    assert (status, out) == (2, "")
    assert err.startswith("labelleak: ")
    assert message in err
    assert err.endswith(" --help\n")
    assert err.count("\n") == 1


def test_without_its_extra_the_command_line_names_it(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("click", "labelleak.cli.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    assert labelleak("attacks") == (
        2,
        "",
        "labelleak: this command needs click: pip install 'labelleak[cli]'\n",
    )
