import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from labelleak.report.charts import counts_chart, inline_svg


def _rows(number, known=True):
    return [
        {"label": 100 + i, "restored": i % 5, "true": i % 4 if known else None}
        for i in range(number)
    ]


def _bars(svg, color):
    """Heights of the bars of a color, in points."""
    paths = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="fill: {color}', svg)
    heights = []
    for path in paths:
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        heights.append(max(ys) - min(ys))
    return heights


@pytest.mark.parametrize("number", [1, 10, 13, 60])
def test_bars_are_as_high_as_the_counts(number):
    rows = _rows(number)
    heights = _bars(counts_chart(rows), "#0072b2")[:number]
    counts = [row["restored"] for row in rows]
    unit = max(heights) / max(*counts, 1)
    assert heights == pytest.approx([unit * count for count in counts], abs=0.01)


def test_the_true_counts_are_left_out_where_they_are_not_known():
    assert "true (private)" in counts_chart(_rows(3))
    assert "true (private)" not in counts_chart(_rows(3, known=False))


def test_every_class_has_its_label_and_the_chart_stays_narrow():
    svg = counts_chart(_rows(60))
    for label in range(100, 160):
        assert re.search(rf">{label}</text>", svg)
    # At most 5.2 inches: about 11 pixels a letter on a phone.
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) <= 72 * 5.2


def test_an_svg_is_whole_named_and_the_same_every_time():
    svg = counts_chart(_rows(3))
    assert svg == counts_chart(_rows(3))
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.find("{http://www.w3.org/2000/svg}title").text.startswith("True and restored")


def test_names_in_an_svg_are_those_that_are_referred_to():
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1], marker="o")
    svg = inline_svg(figure, "<b>&")
    assert "&lt;b&gt;&amp;" in svg
    names = set(re.findall(r'(?<![\w:])id="([^"]*)"', svg))
    assert names
    assert names <= set(re.findall(r"#([\w-]+)", svg))


def test_ink_and_paper_are_those_of_the_page():
    svg = counts_chart(_rows(3))
    assert "currentColor" in svg
    assert not set(re.findall("#[0-9a-f]{6}", svg)) & {"#000000", "#ffffff", "#1b1f24"}
