"""What all pages share: the templates, how numbers are written, and that text is escaped."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    PackageLoader,
    StrictUndefined,
    TemplateError,
    select_autoescape,
)

from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.report import text

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def render(template: str, **content: Any) -> str:
    """A page from a template of this package; what is filled in is escaped.

    Args:
        template: Name of the template.
        **content: Values of its variables.

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
    environment.filters["metric"] = lambda value: typeset(text.number(value))
    environment.filters["typeset"] = typeset
    return environment


def typeset(figure: str) -> str:
    """A figure in ASCII with the minus sign or the dash that a page has for it.

    Example:
        >>> typeset("-0.250"), typeset("-")
        ('−0.250', '–')
    """
    if figure == text.NONE:
        return NONE
    return f"{MINUS}{figure[1:]}" if figure.startswith("-") else figure


@contextmanager
def held_to_schema(path: Path) -> Iterator[None]:
    """One line where no page can be made of what a file holds.

    Args:
        path: The file, which named the right schema.

    Raises:
        UnreadableFile: Something inside failed for want of a value, or over one of another type.
    """
    try:
        yield
    except LabelLeakError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise UnreadableFile(
            f"{path}: does not hold what its schema says ({type(error).__name__}: {error})"
        ) from None
