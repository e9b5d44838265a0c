"""What all pages share: templates with escaped text, signs and dashes, and a check of the input."""

import json
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
from markupsafe import Markup

from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.report import text

NONE = "\N{EN DASH}"
# On a phone the longest one may break.
_SHORT_VERDICTS = {
    "over threshold": "over",
    "audited": "within",
    "inconclusive": "incon\N{SOFT HYPHEN}clusive",
}
MINUS = "\N{MINUS SIGN}"


def render(template: str, **content: Any) -> str:
    """Fill in a template of this package; text is escaped.

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
    environment.filters["figure"] = lambda value: typeset(text.number(value, fixed=False))
    environment.filters["grouped"] = text.grouped
    environment.filters["told_as"] = lambda value, key: typeset(
        text.number(value, fixed=key != "told")
    )
    environment.filters["share"] = lambda share: f"{share:.1%}"
    environment.filters["percent"] = lambda share: f"{100 * share:.2f}%"
    environment.filters["typeset"] = typeset
    environment.filters["short_verdict"] = lambda verdict: _SHORT_VERDICTS.get(verdict, verdict)
    environment.filters["capitalize_first"] = lambda words: words[:1].upper() + words[1:]
    return environment


def typeset(figure: str) -> str:
    """Put the minus sign or the dash of a page into a figure that is written in ASCII.

    Examples:
        >>> typeset("-0.250"), typeset("-")
        ('−0.250', '–')
    """
    if figure == text.NONE:
        return NONE
    return f"{MINUS}{figure[1:]}" if figure.startswith("-") else figure


def embedded(content: Any) -> Markup:
    """JSON for a script element of a page, in which no text can end that element.

    Args:
        content: Plain data.

    Examples:
        >>> "<" in embedded(["</script>"])
        False
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


_NOT_AS_IT_SAYS = (
    *(AttributeError, LookupError, TypeError, ValueError),
    *(ArithmeticError, RecursionError, TemplateError),
)


@contextmanager
def held_to_schema(path: Path | str) -> Iterator[None]:
    """Context in which a record that is not as its schema says is an error of its file.

    Args:
        path: The file, which names the schema, or what the records are.

    Raises:
        UnreadableFile: A value of the record is missing, or of another type.
    """
    try:
        yield
    except LabelLeakError:
        raise
    except _NOT_AS_IT_SAYS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnreadableFile(f"{path}: does not hold what its schema says ({reason})") from None
