import sys

from labelleak.cli.messages import one_line, tell


def test_a_line_has_no_control_characters():
    assert one_line("a\x1b[1m\n\tb\x9bc\udcff") == "a [1m b c"


def test_a_long_line_keeps_its_ends():
    line = one_line("a" * 10**5 + "z" * 10**5)
    assert len(line) < 1100
    assert line.startswith("aaa")
    assert line.endswith("zzz")


def test_lines_go_to_standard_error(capsys):
    tell("line")
    assert capsys.readouterr() == ("", "line\n")


def test_a_reader_that_is_gone_changes_nothing(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    tell("line")
