import io
import sys

import pytest

from labelleak.cli.console import console, progress_bar


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
