"""What all pages share: the templates, how numbers are written, and that text is escaped."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from labelleak import views

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


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
    environment.filters["metric"] = lambda value: typeset(views.number(value))
    environment.filters["typeset"] = typeset
    return environment


def typeset(text: str) -> str:
    """A figure in ASCII with the minus sign or the dash that a page has for it."""
    if text == views.NONE:
        return NONE
    return f"{MINUS}{text[1:]}" if text.startswith("-") else text
