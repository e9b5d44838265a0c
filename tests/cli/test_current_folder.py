"""A module that a grid names is not looked for in the current folder, unless it is named."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import labelleak

GRID = """
[defaults]
data = "mnist-sample"
network = { name = "fcn-2" }
batch = { size = 4 }
attacks = ["stranger:attack"]
trials = 1
"""
SCRIPT = Path(sysconfig.get_path("scripts")) / "labelleak"


@pytest.mark.parametrize("start", [[sys.executable, "-m", "labelleak"], [SCRIPT]])
def test_a_module_beside_a_grid_is_found_only_where_its_folder_is_named(tmp_path, start):
    (tmp_path / "stranger.py").write_text("raise RuntimeError('it ran')\n")
    (tmp_path / "grid.toml").write_text(GRID)

    def compare(*options):
        return subprocess.run(
            [*start, "compare", "grid.toml", *options],
            env=os.environ | {"PYTHONPATH": str(Path(labelleak.__file__).parent.parent)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    beside = compare()
    assert (beside.returncode, "there is no module 'stranger' in" in beside.stderr) == (2, True)
    if start == [SCRIPT]:  # the folders that are named are the same for both
        named = compare("--module-dir", ".")
        assert (named.returncode, "RuntimeError: it ran (stranger.py" in named.stderr) == (2, True)
