"""Draws the leakage against epsilon from the summary of `train.py`.

    python examples/opacus-loop/figure.py labelleak-runs/opacus/summary.json leakage.png

A panel for each learning rate; 0 leaves the network as the server handed it out.
"""

import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GRAY = "#0072B2", "#D55E00", "#767676"


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    runs = json.loads(source.read_text())
    rates = sorted({run["learning_rate"] for run in runs})
    figure = Figure(figsize=(4.4 * len(rates), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axes, rate in zip(panels, rates, strict=True):
        draw(axes, [run for run in runs if run["learning_rate"] == rate])
        what = "as it was handed out" if rate == 0 else f"in training, rate {rate:g}"
        axes.set_title(f"Network {what}", fontsize=10)
    panels[0].set_ylabel("labels restored, mean over the steps")
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(target, dpi=120)


def draw(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """One panel: runs with noise against their epsilon, the others as lines across."""
    noises = sorted({run["noise_multiplier"] for run in runs} - {0.0})
    points = [[run for run in runs if run["noise_multiplier"] == noise] for noise in noises]
    epsilons = [mean(run["steps"]["epsilon"][-1] for run in point) for point in points]
    shares, errors = zip(*(summary(point) for point in points), strict=True)
    axes.errorbar(
        epsilons, shares, errors, marker="o", markersize=4, color=BLUE, label="DP-SGD, 95%"
    )
    clipped = [run for run in runs if run["noise_multiplier"] == 0.0 and run["max_grad_norm"]]
    plain = [run for run in runs if run["noise_multiplier"] == 0.0 and not run["max_grad_norm"]]
    for label, part, style in (
        ("without DP", plain, "-"),
        ("clipping only", clipped, "--"),
    ):
        if part:
            axes.axhline(summary(part)[0], label=label, color=VERMILION, linestyle=style)
    guessed = mean(share for run in runs for share in run["steps"]["guessed"])
    axes.axhline(guessed, color=GRAY, linestyle=":", label="all classes guessed equal")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"epsilon after one epoch (delta {runs[0]['delta']:g})")
    axes.spines[["top", "right"]].set_visible(False)


def summary(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean share of the labels restored, and half the width of its 95% interval."""
    shares = [share for run in runs for share in run["steps"]["restored"]]
    return mean(shares), 1.96 * stdev(shares) / math.sqrt(len(shares))


if __name__ == "__main__":
    main()
