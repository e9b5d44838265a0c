import json

from click.testing import CliRunner

import labelleak
from labelleak.cli import labelleak as command


def test_the_list_holds_every_attack_with_its_source():
    rows = json.loads(CliRunner().invoke(command, ["attacks", "--format", "json"]).output)
    assert [row["name"] for row in rows] == list(labelleak.attacks())
    assert all(row["reference"] and row["needs"] and row["gives"] for row in rows)


def test_the_table_names_every_attack():
    output = CliRunner().invoke(command, ["attacks"]).output
    assert all(name in output for name in labelleak.attacks())
