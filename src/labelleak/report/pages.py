"""What all pages share: the templates, how numbers are written, and that text is escaped."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def render(template: str, **content: Any) -> str:
    """A page from a template of this package; what is filled in is escaped.

    Args:
        template: Name of the template.
        **content: What its variables stand for.

    Returns:
        The page, one file with nothing to load.
    """
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("labelleak.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["metric"] = metric
    return environment


def metric(value: float | bool | None) -> str:
    """A score for a reader: three digits after the point, yes or no, or a dash for none."""
    if value is None:
        return NONE
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3f}"
