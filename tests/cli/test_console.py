import io
import sys

import pytest

from labelleak.cli.console import console, line_teller, progress_bar


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_broken_pipe_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        console().print("text")


def test_a_table_is_wide_where_the_output_is_no_terminal(capsys):
    console().print("x" * 119)
    assert capsys.readouterr().out == "x" * 119 + "\n"


def test_a_bar_without_a_terminal_prints_nothing(capsys):
    with progress_bar() as bar:
        bar.advance(bar.add_task("Working", total=2))
    assert capsys.readouterr() == ("", "")


def test_lines_of_progress_are_few(capsys, monkeypatch):
    """The first, the last, and of the others one every 30 seconds."""
    now = 0.0
    monkeypatch.setattr("labelleak.cli.console.time.monotonic", lambda: now)
    with progress_bar() as bar:
        tell_line = line_teller(bar)
        for number in range(101):
            now = number * 1.0
            tell_line(f"line {number}", always=number in (0, 100))
    assert capsys.readouterr().err.split() == [
        word for number in (0, 31, 62, 93, 100) for word in ("line", str(number))
    ]
