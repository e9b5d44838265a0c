"""The recorded trial of the extras is of the lower bounds that the package has."""

import json
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TRIED = json.loads((ROOT / "results" / "extras.json").read_text())["tried"]


def bounds(extra):
    """Lowest accepted version of what the package and one extra need."""
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, ())]
    return {
        (one := Requirement(text)).name: next(
            Version(limit.version) for limit in one.specifier if limit.operator == ">="
        )
        for text in needed
    }


def test_every_extra_works_at_its_lower_bounds():
    oldest = {row["extra"]: row for row in TRIED if row["end"] == "oldest"}
    assert set(oldest) == {"none", *PROJECT["optional-dependencies"]}
    for extra, row in oldest.items():
        assert row["result"] == "works", row
        tried = {name: Version(version).public for name, version in row["versions"].items()}
        for name, lowest in bounds(extra).items():
            if name not in row["kept"]:
                assert Version(tried[name]) == lowest, (extra, name)


def test_every_extra_works_at_the_newest_versions():
    newest = [row for row in TRIED if row["end"] == "newest"]
    assert {row["extra"] for row in newest} == {"none", *PROJECT["optional-dependencies"]}
    assert {row["result"] for row in newest} == {"works"}
