"""Run the app on this machine: SecAgg+ over a SuperLink and three SuperNodes.

    python secagg.py [--out FOLDER]

It prints what each site gave away before the mask and what the server restored from the aggregate,
and checks that no plain array arrived. Exit status 1: one did, or an audit is missing.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from labelleak.federated import read_rounds

APP = Path(__file__).parent
sys.path.insert(0, str(APP.parent / "flower"))

import run  # noqa: E402  (the other example, which starts and stops a federation)

ROUNDS = 2


def main() -> int:
    """Start, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for records and logs (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labelleak-secagg-") as scratch:
        out = (options.out or Path(scratch, "out")).resolve()
        out.mkdir(parents=True, exist_ok=True)
        environment = run.with_flower(os.environ, Path(scratch))
        with run.federation(out, environment, simulation=False, refuse=None, policy=None):
            run.run(f'out="{out}" rounds={ROUNDS}', False, environment, out, APP)
        problems = report(out)
    for problem in problems:
        print("PROBLEM:", problem)
    print(f"{len(problems)} problems" if problems else "all as it must be")
    return bool(problems)


def report(out: Path) -> list[str]:
    """Print what the sites and the server restored; what is wrong with it."""
    sites, server = read_rounds(out / "records"), read_rounds(out / "server-records")
    arrived = json.loads((out / "server.json").read_text())["arrays"]
    problems = [f"{max(arrived)} plain arrays arrived in a reply"] if any(arrived) else []
    for number in range(1, ROUNDS + 1):
        own = [r["audit"] for r in sites if r["round"] == number and r["audit"]]
        joint = [r for r in server if r["round"] == number and r["audit"]]
        if (len(own), len(joint)) != (run.SITES, 1):
            problems.append(f"round {number}: {len(own)} audits of sites, {len(joint)} of the sum")
            continue
        total = [sum(counts) for counts in zip(*(one["true_counts"] for one in own), strict=True)]
        found = joint[0]["audit"]["counts"]
        right = sum(min(pair) for pair in zip(total, found, strict=True)) / sum(total)
        shares = ", ".join(f"{one['score']['accuracy']:.0%}" for one in own)
        print(f"round {number}: labels restored of each site's update before the mask: {shares}")
        print(f"  labels of all sites together: {total}")
        print(f"  restored from the aggregate:  {found} ({right:.0%}), {joint[0]['verdict']}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
