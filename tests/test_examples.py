"""Every script under examples/ runs, as its reader would run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_example_of_an_audit_shows_what_a_defence_buys(tmp_path):
    script = next(path for path in EXAMPLES if path.name == "audit_before_sending.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    plain, noisy, sparse = done.stdout.splitlines()
    shares = [int(re.search(r"(\d+)% of the labels", line)[1]) for line in (plain, sparse)]
    assert shares[0] >= 90
    assert shares[1] < shares[0]
    assert "no flags" in plain
    assert "sums_not_zero" in noisy
