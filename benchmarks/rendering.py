"""How long do the pages take to make, and to open in a browser?

    python benchmarks/rendering.py --output results/benchmark-rendering.json

The page of a federation of 100 clients with 1,000 audits, and that of the recorded leaderboard.
Needs Chromium on the path and the extras cli and report. The audits are copies of one real audit
under other names. Of five runs the median is told; opening ends with the browser's load event, when
the page's script has run.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import measuring
from labelleak.federated import Auditor, Occasion, Policy, read_rounds, train_locally
from labelleak.lab.datasets import load
from labelleak.lab.networks import build
from labelleak.report.experiments import study_page
from labelleak.report.rounds import rounds_page
from labelleak.report.run import read_run
from labelleak.training import LocalTraining
from screenshots import BROWSERS, ROOT

CLIENTS, AUDITS, RUNS = 100, 1000, 5
_WATCH = "<script>onload = () => { document.title = `${performance.now()}`; };</script>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"needs a browser on the path, one of {', '.join(BROWSERS)}")
    before = measuring.load()
    with TemporaryDirectory() as folder:
        records = audits(Path(folder))
        title, summaries = read_run(ROOT / "results" / "leaderboard" / "summary.json")
        pages: dict[str, Callable[[], str]] = {
            f"{AUDITS:,} audits of {CLIENTS} clients": lambda: rounds_page(records),
            "the leaderboard": lambda: study_page(summaries, title),
        }
        rows = [measure(name, make, browser, Path(folder)) for name, make in pages.items()]
    for row in rows:
        print(row)
    measuring.write(output, "rendering", before, torch.get_num_threads(), rows=rows)


def audits(folder: Path) -> list[dict[str, Any]]:
    """A real audit as that of each client in each round."""
    digits = load("mnist-sample")
    model = build("fcn-2", classes=10, image_shape=(1, 28, 28), seed=1)
    training = LocalTraining("sgd", learning_rate=0.1, batch_size=24)
    update = train_locally(model, *digits.batch(torch.arange(24)), training, classes=10, seed=1)
    auditor = Auditor(Policy(action="record", records=str(folder / "records")))
    occasion = Occasion(1, "client", "")
    auditor.audit_update(
        update.before, update.after, training, occasion,
        instances=24, true_counts=update.true_counts,
    )  # fmt: skip
    (record,) = read_rounds(folder / "records")
    return [
        record | {"round": 1 + number // CLIENTS, "client": f"client {number % CLIENTS}"}
        for number in range(AUDITS)
    ]


def measure(name: str, make: Callable[[], str], browser: str, folder: Path) -> dict[str, Any]:
    seconds, opened = [], []
    for _ in range(RUNS):
        start = time.perf_counter()
        page = make()
        seconds.append(time.perf_counter() - start)
        opened.append(opening(page, browser, folder))
    return {
        "page": name,
        "bytes": len(page.encode()),
        "seconds_to_make": statistics.median(seconds),
        "seconds_to_open": statistics.median(opened),
    }


def opening(page: str, browser: str, folder: Path) -> float:
    """Seconds from the start of the navigation to the load event."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"{_WATCH}</body>"), encoding="utf-8")
    shown = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri(),
        ],
        check=True, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip
    found = re.search(r"<title>([\d.]+)</title>", shown)
    if found is None:
        raise SystemExit("the page did not load")
    return float(found[1]) / 1000


if __name__ == "__main__":
    main()
