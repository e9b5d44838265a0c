"""Every script under examples/ runs as a reader would run it."""

import re
from pathlib import Path

import pytest

from scripts import run_script

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path):
    assert run_script(script, folder=tmp_path)


def test_the_example_of_an_audit_shows_what_a_defense_buys(tmp_path):
    script = next(path for path in EXAMPLES if path.name == "audit_before_sending.py")
    plain, noisy, sparse = run_script(script, folder=tmp_path).splitlines()
    shares = [int(re.search(r"(\d+)% of the labels", line)[1]) for line in (plain, sparse)]
    assert shares[0] >= 90
    assert shares[1] < shares[0]
    assert "no flags" in plain
    assert "sums_not_zero" in noisy
