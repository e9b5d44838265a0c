import re

import pytest

from labelleak.report.figures import differences_chart, study_figures


def _points(svg, style):
    """Where the markers of a style are, in points from the top left, the legend's left out."""
    uses = re.findall(rf'<use xlink:href="#([^"]*)" x="([^"]*)" y="([^"]*)" style="{style}', svg)
    groups = {}
    for name, x, y in uses:
        groups.setdefault(name, []).append((float(x), float(y)))
    # The legend is above the axes, and has each marker once.
    return [sorted(points, key=lambda p: p[1])[1:] for points in groups.values()]


def _series(points, number):
    return sorted(next(p for p in points if len(p) == number))


def test_ours_and_the_published_are_where_their_values_are(figure):
    (chart, _) = study_figures(figure)
    ours = _series(_points(chart["svg"], "fill: #0072b2"), 3)
    published = _series(_points(chart["svg"], r"fill: var\(--paper\); stroke: #767676"), 3)
    # Batch sizes 8, 16 and 64 on an axis of powers of two.
    for curve in (ours, published):
        first, second, third = (x for x, _ in curve)
        assert (third - second) / (second - first) == pytest.approx(2.0, abs=0.01)
    # One scale for all heights.
    ours_values, published_values = (0.9, 0.8, 0.4), (0.95, 0.8, 0.37)
    slope = (ours[2][1] - ours[0][1]) / (ours_values[2] - ours_values[0])
    for (_, y), value in zip(ours + published, ours_values + published_values, strict=True):
        assert y - ours[0][1] == pytest.approx(slope * (value - 0.9), abs=0.01)


def test_intervals_reach_from_low_to_high(figure):
    svg = study_figures(figure)[0]["svg"]
    bars = re.findall(
        r'<path d="M (\S+) (\S+) \nL \1 (\S+) \n" clip-path="[^"]*" style="fill: none; '
        r"stroke: #0072b2",
        svg,
    )
    lengths = [abs(float(low) - float(high)) for _, low, high in bars]
    ours = _series(_points(svg, "fill: #0072b2"), 3)
    unit = (ours[2][1] - ours[0][1]) / 0.5
    assert lengths == pytest.approx([0.1 * unit] * 3, rel=0.01)


def test_axes_have_names_units_and_the_published_ticks(figure):
    svg = study_figures(figure)[0]["svg"]
    assert "batch size K (instances)" in svg
    assert "score (1: all right)" in svg
    ticks = re.findall(r">(\d+)</text>", svg)
    assert ticks == ["8", "16", "64"]


def test_other_attacks_have_a_chart_of_their_own(figure):
    first, second = study_figures(figure)
    assert (first["title"], second["title"]) == (
        "FCN-3 on MNIST, by batch size",
        "FCN-3 on MNIST, by batch size, other attacks",
    )
    assert "RLG" not in first["svg"]
    assert "RLG" in second["svg"]


def test_without_published_figures_there_is_no_legend_for_them(figure):
    assert "published" in study_figures(figure)[0]["svg"]
    for row in figure["rows"]:
        for cell in row["metrics"].values():
            cell |= {"published": None, "difference": None, "inside": None}
    assert "published" not in study_figures(figure)[0]["svg"]


def test_where_all_is_near_one_the_axis_says_that_it_starts_higher(figure):
    for row in figure["rows"]:
        row["metrics"]["ilrg.lnacc"] |= {"ours": 0.99, "low": 0.98, "high": 1.0, "published": 1.0}
    assert "score, from 0.9 on" in study_figures(figure)[0]["svg"]


def test_curves_of_several_series_are_charts_of_their_own(figure):
    figure["rows"][1]["series"] = "trained"
    titles = [chart["title"] for chart in study_figures(figure)]
    assert titles == [
        "FCN-3 on MNIST, by batch size, FCN-3",
        "FCN-3 on MNIST, by batch size, FCN-3, other attacks",
        "FCN-3 on MNIST, by batch size, trained",
    ]


def test_categories_are_as_far_apart_however_far_their_values_are(figure):
    figure["panels"][0] |= {"x_scale": "category", "x_labels": ["none", "few", "many"]}
    svg = study_figures(figure)[0]["svg"]
    first, second, third = (x for x, _ in _series(_points(svg, "fill: #0072b2"), 3))
    assert third - second == pytest.approx(second - first, abs=0.01)
    assert re.search(r"none</text>.*few</text>.*many</text>", svg, re.DOTALL)


def test_a_linear_axis_is_linear(figure):
    figure["panels"][0]["x_scale"] = "linear"
    first, second, third = (
        x for x, _ in _series(_points(study_figures(figure)[0]["svg"], "fill: #0072b2"), 3)
    )
    assert (third - second) / (second - first) == pytest.approx(6.0, abs=0.05)


def test_charts_name_the_data_that_stands_in(figure):
    assert study_figures(figure)[0]["stand_ins"] == []
    assert not study_figures(figure)[0]["smaller"]
    figure["rows"][2] |= {"data": "b", "stands_in_for": "a", "shrunk": ["less"]}
    for chart in study_figures(figure):
        assert chart["stand_ins"] == [("b", "a")]
        assert chart["smaller"]


def test_a_table_has_no_figure(table):
    assert study_figures(table) == []


def test_differences_are_of_scores_only(table, figure):
    svg = differences_chart([table, figure])
    own = [p for group in _points(svg, "fill: #0072b2") for p in group]
    other = [p for group in _points(svg, "fill: #d55e00") for p in group]
    # The mean squared error of the table is not a score; a stand-in is marked as one.
    assert len(own) == 1 + 4
    assert len(other) == 1
    assert re.findall(r"(Table 1|Figure 3)</text>", svg) == ["Table 1", "Figure 3"]
    # -0.2 of the stand-in to the left, +0.2 (RLG, K = 16) to the right, as far from the middle.
    middle = (max(x for x, _ in own) + other[0][0]) / 2
    assert min(abs(x - middle) for x, _ in own) == pytest.approx(0.0, abs=0.5)
    assert differences_chart([]) is None
