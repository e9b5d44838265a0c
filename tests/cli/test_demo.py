import json
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from labelleak.attacks import Need, attacks
from labelleak.cli import labelleak


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = CliRunner().invoke(labelleak, ["demo", "--out", str(folder)], catch_exceptions=False)
    return done, folder


def test_the_demo_shows_true_and_restored_counts_and_every_score(demo):
    done, folder = demo
    assert done.exit_code == 0
    record = json.loads((folder / "record.json").read_text())
    assert record["attack"] == "ilrg"
    assert sum(record["counts"]) == record["batch_size"] == 24
    for label, (true, restored) in enumerate(
        zip(record["true_counts"], record["counts"], strict=True)
    ):
        if true or restored:
            assert re.search(rf"│\s+{label} │\s+{true} │\s+{restored} │", done.output)
    enough = {Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS}
    possible = {name for name, entry in attacks().items() if enough.issuperset(entry.needs)}
    assert {"idlg", "rlg", "ilrg", "llg", "ebi"} <= possible
    assert len(list(folder.glob("record-*.json"))) == len(possible)
    for name in possible:
        assert re.search(rf"│ {name}\s+│", done.output)
        assert json.loads((folder / f"record-{name}.json").read_text())["attack"] == name


def test_the_page_shows_the_same(demo):
    _, folder = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    record = json.loads((folder / "record.json").read_text())
    cells = re.findall(r"<tr[^>]*><td>(\d+)</td><td>(\d+)</td>\s*<td>(\d+)</td></tr>", page)
    assert [(int(t), int(r)) for _, t, r in cells] == list(
        zip(record["true_counts"], record["counts"], strict=True)
    )
    assert "<svg" in page
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', page)


def test_the_command_at_the_end_repeats_the_audit(demo):
    done, folder = demo
    line = next(line for line in done.output.splitlines() if "labelleak audit" in line)
    words = shlex.split(line)[1:]
    again = subprocess.run(
        [sys.executable, "-m", "labelleak", *words, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first = json.loads((folder / "record.json").read_text())
    second = json.loads(again.stdout)
    for key in ("attack", "counts", "rounded", "score", "flags", "verdict"):
        assert second[key] == first[key]


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "labelleak", "demo", "--out", str(tmp_path / "file" / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
