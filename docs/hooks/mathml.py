"""Formulas become MathML while the site is built, so that pages need no script to show them."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex writes: \(...\) inside a span, \[...\] inside a div.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: object) -> str:
    """Replace every formula of a rendered page (an event of MkDocs)."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(formula: re.Match[str]) -> str:
    display = "block" if formula["tag"] == "div" else "inline"
    return convert(html.unescape(formula["latex"]).strip(), display=display)
