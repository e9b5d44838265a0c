"""Charts as inline SVG, in colors that color-blind readers can tell apart (Okabe and Ito)."""

import re
from io import StringIO
from math import ceil
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

GRAY = "#767676"
BLUE = "#0072B2"
VERMILION = "#D55E00"
COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors of curves, the most important first; without yellow, which is too pale for a line."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
# Ink, paper and grid lines are those of the page, so that charts are dark where it is.
_OF_THE_PAGE = {
    "#000000": "currentColor",
    "#1b1f24": "currentColor",
    "#ffffff": "var(--paper)",
    "#e3e6e9": "var(--line)",
}
_MOST_IN_A_ROW = 12


def counts_chart(rows: list[dict[str, Any]]) -> str:
    """Draw bars of the restored number of samples per class, beside the true one where known.

    Args:
        rows: One dict per class: ``label``, ``restored``, ``true`` (None where not known), and the
            ends of its interval, ``low`` and ``high``, where ``interval`` says that there is one.

    Returns:
        An ``<svg>`` element with a title for screen readers. It is narrow enough for a phone: many
        classes are drawn in several rows of bars.
    """
    known = rows[0]["true"] is not None
    lines = ceil(len(rows) / _MOST_IN_A_ROW)
    length = ceil(len(rows) / lines)
    width = 0.4 if known else 0.7
    highest = max(max(row["restored"], row["true"] or 0, row.get("high", 0)) for row in rows)
    with rc_context({**STYLE, "svg.hashsalt": "counts"}):
        figure = Figure(figsize=(5.2, 1.6 + 1.9 * lines), layout="constrained")
        for line, axes in enumerate(figure.subplots(lines, squeeze=False)[:, 0]):
            part = rows[line * length : (line + 1) * length]
            if known:
                axes.bar(
                    [place - width / 2 for place in range(len(part))],
                    [row["true"] for row in part],
                    width,
                    label="true (private)",
                    color="#999999",
                    hatch="//",
                    edgecolor="white",
                )
            axes.bar(
                [place + (width / 2 if known else 0) for place in range(len(part))],
                [row["restored"] for row in part],
                width,
                label="restored from the update",
                color=BLUE,
                yerr=_reach(part),
                error_kw={"ecolor": "#1b1f24", "elinewidth": 1.2, "capsize": 2.5},
            )
            axes.set_xticks(range(len(part)), [str(row["label"]) for row in part])
            axes.set_xlim(-0.6, length - 0.4)
            axes.set_ylim(0, max(1, highest) * 1.05)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("class")
        figure.supylabel("samples in the batch", fontsize="medium")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
        return inline_svg(figure, "True and restored number of samples of each class")


def _reach(rows: list[dict[str, Any]]) -> list[list[float]] | None:
    """How far the intervals reach below and above the bars."""
    if not any(row.get("interval") for row in rows):
        return None
    return [
        [max(0.0, row["restored"] - row["low"]) for row in rows],
        [max(0.0, row["high"] - row["restored"]) for row in rows],
    ]


def short(text: str, most: int) -> str:
    """Cut a text to a number of characters, as a chart has little room."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def inline_svg(figure: Figure, title: str) -> str:
    """Turn a figure into an ``<svg>`` element that scales with the page.

    A page may hold several: identifiers that nothing refers to are removed, and those of markers
    and clips depend on ``svg.hashsalt``, which the caller sets to a value of its own.

    Args:
        figure: The figure.
        title: Its title for screen readers.
    """
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Title": title})
    text = stream.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub("#[0-9a-f]{6}", lambda found: _OF_THE_PAGE.get(found[0], found[0]), text)
    return text.replace("<svg", '<svg role="img"', 1)
