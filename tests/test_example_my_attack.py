"""The template of an attack in a package of its own, as if it were installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import labelleak
from labelleak.lab.store import read_records

TEMPLATE = Path(__file__).parent.parent / "examples" / "my-attack"
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 0.1.0\n"


def installed(site, name, entry):
    """Make the metadata of a package, whose modules are elsewhere on the path."""
    folder = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(METADATA.format(name))
    (folder / "entry_points.txt").write_text(f"[labelleak.attacks]\n{entry}\n")


@pytest.fixture
def project(tmp_path):
    """A copy of the template and a broken package, both as installed."""
    shutil.copytree(TEMPLATE, tmp_path / "project")
    installed(tmp_path / "site", "my-attack", "shared-shift = my_attack.attack:shared_shift")
    installed(tmp_path / "site", "broken-attack", "broken = no_such_module:attack")
    return tmp_path / "project"


def run(project, *words):
    own = Path(labelleak.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(
                map(str, (own, project / "src", project.parent / "site"))
            ),
            "LABELLEAK_CACHE": str(project.parent / "cache"),
        },
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_entry_point_is_the_one_that_the_test_makes():
    text = (TEMPLATE / "pyproject.toml").read_text()
    assert 'shared-shift = "my_attack.attack:shared_shift"' in text
    assert '[project.entry-points."labelleak.attacks"]' in text


# One process for both: most of their time goes into importing torch.
LISTED_AND_TESTED = """
import pytest, sys
from labelleak.cli.entry import run
status = run(["attacks", "--format", "json"])
sys.stdout = sys.stderr
sys.exit(status or pytest.main(["-q", "-p", "no:cacheprovider", "tests"]))
"""


def test_it_is_listed_its_tests_pass_and_a_broken_package_is_one_line(project):
    done = run(project, "-c", LISTED_AND_TESTED)
    packages = {row["name"]: row["package"] for row in json.loads(done.stdout)}
    assert packages["shared-shift"] == "my-attack 0.1.0"
    assert packages["ilrg"] == "labelleak"
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("labelleak"))
    assert line.startswith(
        "labelleak: left out: attack 'broken' of the package broken-attack 0.1.0 "
        "'no_such_module:attack': there is no module 'no_such_module' in "
    )


def test_it_is_compared_with_two_workers_and_runs_again_when_it_is_changed(project):
    grid = project / "grid.toml"
    grid.write_text(grid.read_text().replace("trials = 10", "trials = 2"))
    compare = ("-m", "labelleak", "compare", "grid.toml", "--out", "out", "--format", "json")
    beside, without = json.loads(run(project, *compare, "--workers", "2").stdout)["rows"]
    assert beside["plugins"] == {
        "shared-shift": "my-attack 0.1.0",
        "shared-shift(sharpness=0.0)": "my-attack 0.1.0",
    }
    assert {"shared-shift.accuracy", "shared-shift(sharpness=0.0).exact"} <= set(beside["metrics"])
    assert not beside["failed"]
    assert not {"found"} & {*beside, *without}
    first = read_records(project / "out")
    attack = project / "src" / "my_attack" / "attack.py"
    attack.write_text(attack.read_text().replace("size * (prediction", "size * (0.5 * prediction"))
    beside, without = json.loads(run(project, *compare, "--workers", "1").stdout)["rows"]
    assert "found" not in beside
    assert without["found"] == 2
    again = read_records(project / "out")[len(first) :]
    assert [record["experiment"] for record in again] == ["beside iLRG"] * 2
    assert {r["definition"] for r in again} < {r["definition"] for r in first}
    assert not {r["code"] for r in again} & {r["code"] for r in first}
