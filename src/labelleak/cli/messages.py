"""Lines for standard error: bounded, and without characters that would steer a terminal."""

import sys
from contextlib import suppress

_LONGEST_LINE = 1000


def one_line(text: str) -> str:
    r"""A message as one line of at most about 1000 characters, all of them printable.

    Args:
        text: The message; names in it may come from files.

    Returns:
        The line; of a longer one the beginning and the end.

    Examples:
        >>> one_line("what is\n wrong \x1b[31m")
        'what is wrong [31m'
    """
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if len(text) <= _LONGEST_LINE:
        return text
    return f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"


def tell(line: str) -> None:
    """Print a line on standard error; a reader that is gone changes nothing."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
