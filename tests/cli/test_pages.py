"""Every command that the first pages print, run as a reader would on the files of the demo."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from command_line import labelleak
from labelleak.cli.group import command_group

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/inversion.md")
# What a test has no time for: the same search, but short.
SHORTER = {"invert": ("--iterations", "2")}


def commands_of(page):
    """The lines behind a prompt in the page's console blocks, joined where they go on."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    joined = "".join(blocks).replace("\\\n", "")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def inline_commands_of(page):
    """Command lines of the program in running text and tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return sorted(set(re.findall(r"`(labelleak [^`]+)`", text)))


def run_line(line):
    """Run one line of a page; a kind that is not known fails."""
    words = shlex.split(line, comments=True)
    program, *rest = words
    if program == "labelleak":
        # Whatever the labels gave away: no error, and a status that the command documents.
        done = labelleak(*rest, *SHORTER.get(rest[0], ()))
        assert done.err == "", done.err
        # The update of the demo is over the limit that advise has.
        assert done.status == int("--threshold" in rest or rest[0] == "advise"), done
    elif program == "make":
        run_target(*rest)
    elif program == "pip":
        check_extras(*rest)
    elif program == "eval":
        check_completion(*rest)
    elif program == "python":
        # The tests of the examples run it, and compare what it prints.
        assert Path(__file__).parents[2].joinpath(*rest).is_file()
    else:
        assert line == "echo $?", f"no test knows how to run {line!r}"


def run_target(target):
    """What the Makefile does for a target, where that is a command of the program."""
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(rf"^{target}: .*\n\t(.+)$", makefile, re.MULTILINE)
    if "$(BIN)/labelleak " in recipe:
        run_line(recipe.replace("$(BIN)/", ""))
    else:
        # These tests themselves.
        assert (target, "-m pytest" in recipe) == ("test", True)


def check_extras(install, package):
    """The checkout itself, with or without extras that the package has, or extras alone."""
    assert install == "install"
    if package == ".":
        return
    extras = re.fullmatch(r"(?:labelleak|\.)\[(.+)\]", package)[1].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])


def check_completion(substitution):
    """The program hands out a script that defines its completion."""
    name, value = re.fullmatch(r"\$\((\w+)=(\w+) labelleak\)", substitution).groups()
    # Click writes bytes, so that it needs a process of its own.
    script = subprocess.run(
        [sys.executable, "-m", "labelleak"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert "complete" in script
    assert "labelleak" in script


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A folder in which the demo has been run."""
    folder = tmp_path_factory.mktemp("reader")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert labelleak("demo").status == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("page", PAGES)
def test_every_printed_command_runs_on_the_files_of_the_demo(demo_folder, monkeypatch, page):
    monkeypatch.chdir(demo_folder)
    # In order: some read what an earlier one wrote.
    for line in commands_of(page):
        print(line)
        run_line(line)


def test_the_pages_print_commands():
    printed = {page: commands_of(page) for page in PAGES}
    lines = [shlex.split(line) for lines in printed.values() for line in lines]
    named = [words[1] for words in lines if words[0] == "labelleak"]
    assert named.count("audit") >= 4
    assert {"audit", "demo", "attacks", "invert"} <= set(named)
    assert all(printed.values())


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in inline_commands_of(page)]
)
def test_commands_in_the_text_exist_with_their_options(page, line):
    """Those are no whole command lines, and some take hours: names are checked, nothing is run."""
    words = [word for word in shlex.split(line)[1:] if not word.startswith(("<", "..."))]
    with click.Context(command_group) as context:
        command = command_group.get_command(context, words[0])
    assert command is not None, f"{page}: {line}"
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= {*options, "--help"}
