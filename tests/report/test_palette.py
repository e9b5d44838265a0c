import re
from importlib.resources import files

import pytest

from labelleak.report.palette import contrast, score_colors

_STYLE = files("labelleak.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
# The colors of text, and what it stands on.
_TEXT = ("--ink", "--soft", "--blue", "--vermilion")
_GROUND = ("--paper", "--panel", "--warm")


def _properties(css):
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{3,6})", css))


def _schemes():
    """The palette of the style sheet, by kind of page."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", _STYLE)
    (printed,) = re.findall(r"@media print \{\s*:root \{(.*?)\}", _STYLE)
    return {"light": light, "dark": dark, "print": printed}


def _wcag(one, other):
    """Contrast as WCAG 2.2 defines it, written down a second time."""

    def channel(text):
        value = int(text, 16) / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    def luminance(color):
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        return sum(
            weight * channel(digits[place : place + 2])
            for weight, place in ((0.2126, 0), (0.7152, 2), (0.0722, 4))
        )

    a, b = luminance(one), luminance(other)
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_can_be_read_on_every_ground(scheme):
    colors = _properties(_schemes()[scheme])
    ratios = {(a, b): _wcag(colors[a], colors[b]) for a in _TEXT for b in _GROUND}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_scores_can_be_read_on_their_color(scheme):
    colors = score_colors()[scheme]
    assert len(colors) == 11
    assert [pair for pair in colors if _wcag(*pair) < 4.5] == []
    # A larger score is a stronger color, in one direction.
    paper = _properties(_schemes()[scheme])["--paper"]
    steps = [_wcag(fill, paper) for fill, _ in colors]
    assert steps == sorted(steps)


def test_contrast_is_that_of_the_guidelines():
    for pair in (("#0072b2", "#ffffff"), ("#777777", "#ffffff"), ("#1b1f24", "#f6f8fa")):
        assert contrast(*pair) == pytest.approx(_wcag(*pair))
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
