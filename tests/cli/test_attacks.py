import json

from click.testing import CliRunner
from rich.console import Console

import labelleak
from labelleak.cli import labelleak as command
from labelleak.cli import output


def test_the_list_holds_every_attack_with_its_source():
    rows = json.loads(CliRunner().invoke(command, ["attacks", "--format", "json"]).output)
    assert [row["name"] for row in rows] == list(labelleak.list_attacks())
    assert all(row["reference"] and row["needs"] and row["gives"] for row in rows)


def test_the_list_says_of_each_attack_what_it_needs():
    text = " ".join(CliRunner().invoke(command, ["attacks"]).output.split())
    for name, entry in labelleak.list_attacks().items():
        assert f"{name}: {entry.title}" in text
        assert entry.reference in text
        assert f"assumes {entry.assumes}" in text


def test_the_list_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr(output, "_Console", lambda width, **style: Console(width=80, **style))
    lines = CliRunner().invoke(command, ["attacks"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "ilrg: iLRG (instance-wise label restoration)" in lines


def test_the_list_has_the_papers_own_comparison_first_and_ours_last():
    names = list(labelleak.list_attacks())
    assert names[:4] == ["ilrg", "rlg", "gradinversion", "idlg"]
    assert names.index("llg") < names.index("rlu") < names.index("exact")
    assert names[-5:] == ["exact", "likelihood", "calibrated", "pooled", "mbi"]
