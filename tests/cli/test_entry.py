import io
import sys

import click
import pytest

from labelleak import cli
from labelleak.__main__ import main
from labelleak.cli.output import console, one_line, print_record
from labelleak.errors import InvalidObservation


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the entry point on some words: its status and what it printed."""

    def run_words(*words):
        monkeypatch.setattr(sys, "argv", ["labelleak", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    return run_words


@pytest.fixture
def failing(monkeypatch, run):
    """Runs a command that raises an error."""

    def run_failing(error):
        def fail():
            raise error

        command = click.Command("fail", callback=fail)
        monkeypatch.setitem(cli.labelleak.commands, "fail", command)
        return run("fail")

    return run_failing


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InvalidObservation("what is wrong"), 2, "labelleak: what is wrong\n"),
        (InvalidObservation("one\ntwo"), 2, "labelleak: one\ntwo\n"),
        (KeyError("a"), 70, "internal error, please report it with the command: KeyError: 'a'\n"),
        (RuntimeError("a\x1b[31m\r\nb"), 70, "RuntimeError: a [31m b\n"),
        (ValueError("x" * 10**5), 70, "ValueError: xxxx"),
        (OSError(28, "No space left", "/full"), 2, "labelleak: /full: No space left\n"),
        (MemoryError(), 2, "labelleak: not enough memory\n"),
        (KeyboardInterrupt(), 130, "labelleak: interrupted\n"),
        (ModuleNotFoundError("No", name="matplotlib.figure"), 2, "needs matplotlib: pip install"),
        (ModuleNotFoundError("No", name="other"), 70, "ModuleNotFoundError: No\n"),
    ],
)
def test_whatever_goes_wrong_is_a_line_and_no_verdict(failing, error, status, words):
    code, out, err = failing(error)
    assert code == status
    assert out == ""
    assert words in err
    assert err.startswith("labelleak: ")
    assert err.count("\n") == str(error).count("\n") + 1 or status == 70
    assert len(err.splitlines()) <= 2
    assert len(err) < 1200
    assert "\x1b" not in err


def test_who_stops_reading_gets_no_verdict_and_no_error(failing, monkeypatch):
    done = []
    monkeypatch.setattr(cli.os, "dup2", lambda source, target: done.append(target))
    assert failing(BrokenPipeError()) == (141, "", "")
    assert done == [1]


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_broken_pipe_is_not_swallowed_by_rich(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        console().print("text")


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
def test_wrong_usage_is_one_line_that_names_the_help(run, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("labelleak: ")
    assert message in err
    assert err.endswith(" --help\n")
    assert err.count("\n") == 1


def test_help_and_version_end_well(run):
    assert run("--version")[0] == 0
    code, out, _ = run("--help")
    assert code == 0
    assert "..." not in out.partition("Commands:")[2]
    commands = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert commands[:3] == ["demo", "audit", "attacks"]


def test_a_missing_command_line_is_named(monkeypatch, run):
    monkeypatch.delitem(sys.modules, "labelleak.cli")
    monkeypatch.setitem(sys.modules, "click", None)
    code, _, err = run("attacks")
    assert code == 2
    assert err == "labelleak: the command line needs its extra: pip install 'labelleak[cli]'\n"


def test_a_line_has_no_control_characters():
    assert one_line("a\x1b[1m\n\tb\x9bc\udcff") == "a [1m b c"


def test_names_from_files_are_no_markup(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    name = "[red]fc[/red] :bomb: [/]"
    print_record(
        {
            "attack": name, "classes": 2, "features": 3, "head": name, "batch_size": 1,
            "local_steps": 1, "present": [0], "counts": [1, 0], "proportions": None,
            "true_counts": None, "score": None, "seconds": 0.1, "verdict": "audited",
            "flags": [{"name": "set_only", "text": name}], "reason": name,
        },
        console(),
    )  # fmt: skip
    assert " ".join(sys.stdout.getvalue().split()).count(name) == 4
