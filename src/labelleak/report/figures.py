"""The paper's figures drawn again: our curves with their intervals, over the published ones."""

from collections.abc import Sequence
from math import log2
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from labelleak.report.charts import BLUE, COLORS, GRAY, STYLE, VERMILION, inline_svg, short
from labelleak.report.pages import MINUS

Summary = dict[str, Any]
"""The summary of a study, schema ``labelleak/study/1``."""

_MARKERS = "osD^vP*"
_WIDTH = 4.5
_DODGE = 0.012


def study_figures(summary: Summary) -> list[dict[str, Any]]:
    """Draw the charts of a study, one per panel, curve and kind of metric.

    Args:
        summary: The summary of the study.

    Returns:
        One dict per chart: ``title``; the element ``svg``; ``stand_ins``, the data sets that stand
        in for the published ones; ``smaller``, whether a point is of a smaller experiment than the
        published one. A study without panels has no chart.
    """
    metrics = {metric["name"]: metric for metric in summary["metrics"]}
    figures = []
    for panel in summary["panels"]:
        rows = [row for row in summary["rows"] if row["panel"] == panel["key"]]
        series = list(dict.fromkeys(row["series"] for row in rows))
        for name in series:
            points = sorted((r for r in rows if r["series"] == name), key=lambda row: row["x"])
            groups = _groups([metrics[metric] for metric in panel["metrics"]], points)
            for place, group in enumerate(groups):
                title = panel["title"] + (f", {name}" if len(series) > 1 and name else "")
                title += ", other attacks" if place else ""
                figures.append(
                    {
                        "title": title,
                        "svg": _chart(title, panel, points, group),
                        "stand_ins": sorted(
                            {(r["data"], r["stands_in_for"]) for r in points if r["stands_in_for"]}
                        ),
                        "smaller": any(row["shrunk"] for row in points),
                    }
                )
    return figures


def _groups(metrics: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[list[Any]]:
    """The metrics of the first attack, and those of all others, for a chart each."""
    used = [m for m in metrics if any(m["name"] in row["metrics"] for row in rows)]
    first = [m for m in used if m["attack"] == used[0]["attack"]]
    return [group for group in (first, [m for m in used if m not in first]) if group]


def _chart(
    title: str, panel: dict[str, Any], rows: list[dict[str, Any]], metrics: list[dict[str, Any]]
) -> str:
    with rc_context({**STYLE, "svg.hashsalt": f"{title} {metrics[0]['name']}"}):
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        places = _horizontal(axes, panel, [row["x"] for row in rows])
        handles: list[Any] = [
            _curve(axes, metric, rows, places, number, len(metrics))
            for number, metric in enumerate(metrics)
        ]
        _vertical(axes, metrics, [_cell(row, metric) for row in rows for metric in metrics])
        titles = [short(metric["title"], 60) for metric in metrics]
        if any(_cell(row, m)["published"] is not None for row in rows for m in metrics):
            handles.append(_published_handle())
            titles.append("published (same shape)")
        columns = 1 if max(map(len, titles)) > 30 else 2
        figure.legend(handles, titles, loc="outside upper left", ncols=columns, frameon=False)
        return inline_svg(figure, title)


def _cell(row: dict[str, Any], metric: dict[str, Any]) -> dict[str, Any]:
    return row["metrics"].get(metric["name"]) or {"ours": None, "published": None}


def _curve(
    axes: Axes,
    metric: dict[str, Any],
    rows: list[dict[str, Any]],
    places: list[float],
    number: int,
    curves: int,
) -> ErrorbarContainer:
    """Draw one metric: the published curve in gray, and over it ours with its intervals."""
    marker, color = _MARKERS[number % len(_MARKERS)], COLORS[number % len(COLORS)]
    cells = list(zip(places, (_cell(row, metric) for row in rows), strict=True))
    shown = [(x, cell["published"]) for x, cell in cells if cell["published"] is not None]
    axes.plot(
        [x for x, _ in shown],
        [y for _, y in shown],
        linestyle="--",
        linewidth=1,
        color=GRAY,
        marker=marker,
        markersize=8,
        markerfacecolor="white",
        zorder=2,
    )
    # Curves are moved sideways, as those that share a value would hide each other's intervals.
    low, high = axes.get_xlim()
    shift = (number - (curves - 1) / 2) * _DODGE * (high - low)
    ours = [(x + shift, cell) for x, cell in cells if cell["ours"] is not None]
    errors: list[list[float]] = [[], []]
    for _, cell in ours:
        value = cell["ours"]
        errors[0].append(max(0.0, value - (value if cell["low"] is None else cell["low"])))
        errors[1].append(max(0.0, (value if cell["high"] is None else cell["high"]) - value))
    return axes.errorbar(
        [x for x, _ in ours],
        [cell["ours"] for _, cell in ours],
        yerr=errors,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        capsize=2.5,
        zorder=3,
    )


def _published_handle() -> Line2D:
    return Line2D(
        [], [], linestyle="--", linewidth=1, color=GRAY, marker="o", markersize=8,
        markerfacecolor="white",
    )  # fmt: skip


def _horizontal(axes: Axes, panel: dict[str, Any], values: list[float]) -> list[float]:
    """Set up the horizontal axis, and place each value on it."""
    ticks = list(dict.fromkeys(panel["x_ticks"]))
    labels = panel.get("x_labels") or [f"{tick:g}" for tick in ticks]
    axes.set_xlabel(short(panel["x_title"], 64))
    if panel["x_scale"] == "category":
        ticks += sorted(set(values) - set(ticks))
        labels += [f"{tick:g}" for tick in ticks[len(labels) :]]
        places = [float(ticks.index(value)) for value in values]
        shown = [float(place) for place in range(len(ticks))]
        low, high = -0.3, len(ticks) - 0.7
    elif panel["x_scale"].startswith("log"):
        # Batch sizes are powers of two; the labels are the sizes themselves.
        places, shown = [log2(value) for value in values], [log2(tick) for tick in ticks]
        low, high = min(places + shown) - 0.3, max(places + shown) + 0.3
    else:
        places, shown = [float(value) for value in values], [float(tick) for tick in ticks]
        low, high = min(places + shown), max(places + shown)
        low, high = low - 0.04 * (high - low or 1.0), high + 0.04 * (high - low or 1.0)
    if panel["x_scale"] == "linear" and len(shown) > 6:
        shown, labels = shown[::2], labels[::2]
    axes.set_xticks(shown, [short(label, 10) for label in labels])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    return places


def _vertical(axes: Axes, metrics: list[dict[str, Any]], cells: list[dict[str, Any]]) -> None:
    """Set up the vertical axis: scores from 0 to 1, or from 0.9 where all are above."""
    if all(metric["bounds"] == [0, 1] for metric in metrics):
        values = [cell.get(key) for cell in cells for key in ("ours", "low", "published")]
        high = all(value is None or value >= 0.9 for value in values)
        axes.set_ylim(*((0.897, 1.004) if high else (-0.03, 1.04)))
        axes.set_ylabel("score, from 0.9 on (1: all right)" if high else "score (1: all right)")
    else:
        axes.set_ylabel(short(metrics[0]["title"], 48) if len(metrics) == 1 else "value")
    axes.grid(axis="y", color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)


def short_title(summary: Summary) -> str:
    """The first part of a study's title, such as ``Table 1``."""
    return str(summary["title"]).partition(":")[0]


def differences_chart(summaries: Sequence[Summary]) -> str | None:
    """Draw the differences of our scores from the published ones, a row of points per study.

    Args:
        summaries: The summaries of the run.

    Returns:
        An ``<svg>`` element, or None where no study has a published score with fixed bounds.
    """
    names: list[str] = []
    own: list[tuple[float, int]] = []
    other: list[tuple[float, int]] = []
    for summary in summaries:
        bounded = {m["name"] for m in summary["metrics"] if m["bounds"][1] is not None}
        cells = [
            (row["stands_in_for"] or row["shrunk"], cell["difference"])
            for row in summary["rows"]
            for name, cell in row["metrics"].items()
            if name in bounded and cell["difference"] is not None
        ]
        if cells:
            place = len(names)
            names.append(short(short_title(summary), 20))
            own += [(value, place) for changed, value in cells if not changed]
            other += [(value, place) for changed, value in cells if changed]
    if not names:
        return None
    with rc_context({**STYLE, "svg.hashsalt": "differences"}):
        figure = Figure(figsize=(_WIDTH, 1.5 + 0.42 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0.0, color=GRAY, linewidth=1)
        for points, label, marker, color, shift in (
            (own, "as published: data and sizes", "o", BLUE, -0.16),
            (other, "stand-in data, or smaller", "^", VERMILION, 0.16),
        ):
            if points:
                axes.plot(
                    [value for value, _ in points],
                    [place + shift for _, place in points],
                    linestyle="",
                    marker=marker,
                    markersize=6,
                    color=color,
                    alpha=0.45,
                    markeredgewidth=0,
                    label=label,
                )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        reach = max(0.05, *(abs(value) for value, _ in own + other)) * 1.08
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_formatter(
            lambda value, _: "0" if abs(value) < 1e-9 else f"{value:+.2f}".replace("-", MINUS)
        )
        axes.set_xlabel(f"ours {MINUS} published (score points)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", frameon=False)
        return inline_svg(figure, "Difference of our scores and the published ones, by study")
