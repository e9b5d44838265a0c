import json
import os
import subprocess
import sys

import pytest

from command_line import labelleak
from labelleak.cli.group import COMMANDS

# Runs the entry point, and says afterward which modules are loaded.
PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))
from labelleak.__main__ import main
main()
"""


def loaded(*words, **environment):
    """What a command line prints in a process of its own, and the modules that it loads."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, {name.partition(".")[0] for name in json.loads(done.stderr)}


def completed(*words):
    """What a shell is offered for the last of the words."""
    out, modules = loaded(
        _LABELLEAK_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(("labelleak", *words)),
        COMP_CWORD=str(len(words)),
    )
    return [line.partition(",")[2] for line in out.split()], modules


def test_the_version_needs_no_torch():
    out, modules = loaded("--version")
    assert out.startswith("labelleak, version ")
    assert not modules & {"torch", "numpy", "rich"}


def test_the_help_needs_no_torch():
    out, modules = loaded("--help")
    assert "..." not in out.partition("Commands:")[2]
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert listed == list(COMMANDS)
    assert not modules & {"torch", "numpy"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_needs_no_torch(command):
    out, modules = loaded(command, "--help")
    assert out.startswith(f"Usage: labelleak {command} ")
    assert not modules & {"torch", "numpy"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("a",), ["audit", "advise", "attacks"]),
        (("audit", "--th"), ["--threshold"]),
        (("audit", "--attack", "ilrg", "--kind", "w"), ["weights"]),
        (("reproduce", "table"), ["table1", "table3", "table4", "table5"]),
    ],
)
def test_completion_needs_no_torch(words, offered):
    found, modules = completed(*words)
    assert found == offered
    assert not modules & {"torch", "numpy"}


def test_attack_names_are_completed():
    assert completed("audit", "--attack", "llg")[0] == ["llg", "llg-star", "llg-plus"]
    assert completed("invert", "--attack", "a")[0] == ["auto"]


def test_a_shell_that_is_not_known_is_no_verdict(monkeypatch):
    monkeypatch.setenv("_LABELLEAK_COMPLETE", "shell_complete")
    assert labelleak().status == 2


def test_the_help_names_every_exit_status():
    text = labelleak("--help").text
    for status in (
        "0 audited",
        "1 over it",
        "2 wrong usage",
        "3 inconclusive",
        "70 an internal error",
        "130 interrupted",
    ):
        assert status in text
