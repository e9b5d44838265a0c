"""Results as HTML for notebooks: bars and tables that look right on light and dark pages."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

_FONT = "font:13px/1.5 system-ui,sans-serif"
_CELL = "padding:1px 10px 1px 0;text-align:left;background:none;border:none"
_TRACK = "position:relative;width:220px;height:12px;background:rgba(128,128,128,.18)"
_BLUE, _LINE = "#3b8ed0", "currentColor"


class Bar(NamedTuple):
    """One bar of a chart, with an interval about its end.

    Attributes:
        label: What it is of.
        value: Its length.
        low: Lower end of the interval, or None for no interval.
        high: Upper end.
        text: What stands beside it.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    text: str


def bars_html(title: str, bars: Sequence[Bar], notes: Iterable[str] = ()) -> str:
    """A chart of bars with intervals, and notes below it.

    Args:
        title: Heading.
        bars: The bars, from top to bottom.
        notes: A sentence each.

    Returns:
        HTML without scripts or references; all text is escaped.

    Examples:
        >>> "<b>counts</b>" in bars_html("counts", [Bar("0", 2.0, 1.0, 3.0, "2")])
        True
    """
    longest = max([1e-300, *(max(bar.value, bar.high or 0.0) for bar in bars)])
    rows = "".join(_bar_row(bar, 100.0 / longest) for bar in bars)
    table = f'<table style="border-collapse:collapse;{_FONT}">{rows}</table>'
    return f'<div style="{_FONT}"><b>{escape(title)}</b>{table}{_notes(notes)}</div>'


def facts_html(title: str, facts: Mapping[str, str], notes: Iterable[str] = ()) -> str:
    """A table of names and values, and notes below it.

    Args:
        title: Heading.
        facts: Values by name.
        notes: A sentence each.

    Returns:
        HTML without scripts or references; all text is escaped.

    Examples:
        >>> "<td" in facts_html("Score", {"accuracy": "0.9"})
        True
    """
    rows = "".join(
        f'<tr style="background:none"><td style="{_CELL};opacity:.7">{escape(name)}</td>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    table = f'<table style="border-collapse:collapse;{_FONT}">{rows}</table>'
    return f'<div style="{_FONT}"><b>{escape(title)}</b>{table}{_notes(notes)}</div>'


def observation_facts(seen: Any) -> dict[str, str]:
    """What a server sees of an update, in words.

    Args:
        seen: A `labelleak.Observation`.
    """
    weight = "weight and bias" if seen.has_bias else "weight"
    also = {
        "the model": seen.model,
        "all gradients": seen.gradients,
        "the weights sent back": seen.after,
        "auxiliary data": seen.auxiliary,
        "the classes present": seen.present_classes,
    }
    known = [name for name, value in also.items() if value is not None]
    return {
        "head": f"{seen.head.name or '(top level)'}, {seen.classes} classes, "
        f"{seen.head.features} features, {weight}",
        "loss": f"{seen.loss.kind}, {seen.loss.reduction}",
        "batch size": str(seen.batch_size or "unknown"),
        "local steps": str(seen.local_steps),
        "samples": str(seen.num_instances or "unknown"),
        "also known": ", ".join(known) or "nothing",
    }


def _bar_row(bar: Bar, scale: float) -> str:
    width = scale * max(0.0, bar.value)
    drawn = f'<div style="width:{width:.1f}%;height:100%;background:{_BLUE}"></div>'
    if bar.low is not None and bar.high is not None:
        left, right = scale * max(0.0, bar.low), scale * max(0.0, bar.high)
        drawn += (
            f'<div style="position:absolute;top:5px;height:2px;left:{left:.1f}%;'
            f'width:{max(right - left, 0.5):.1f}%;background:{_LINE}"></div>'
        )
    return (
        f'<tr style="background:none"><td style="{_CELL}">{escape(bar.label)}</td>'
        f'<td style="{_CELL}"><div style="{_TRACK}">{drawn}</div></td>'
        f'<td style="{_CELL}">{escape(bar.text)}</td></tr>'
    )


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul style="margin:4px 0;padding-left:18px">{items}</ul>' if items else ""
