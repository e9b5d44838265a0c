"""The entry of the command line: every outcome becomes an exit status, and every error a line.

Only the standard library is imported outside of the function that catches the errors.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from labelleak.cli.messages import one_line, tell
from labelleak.cli.status import ExitStatus
from labelleak.errors import LabelLeakError

_COMPLETION = "_LABELLEAK_COMPLETE"
"""The environment variable by which a shell asks for completions."""

_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "jinja2": "cli,report",
    "matplotlib": "cli,report",
    "pydantic": "cli,experiments,report",
    "joblib": "cli,experiments,report",
    "distributed": "cli,dask,experiments,report",
}
"""The extras to install where a module is missing."""


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command line.

    Args:
        words: The words after the name of the program.

    Returns:
        The exit status, as `labelleak --help` lists them. Only an audit over its threshold has 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name from a file may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _invoke(words)
    except KeyboardInterrupt as interruption:
        return _end(str(interruption) or "interrupted", ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        # Python flushes the output once more when it exits; that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitStatus.NOBODY_READS
    except LabelLeakError as error:
        # A file of experiments may have several problems, one on each line.
        return _end("\n".join(map(one_line, str(error).splitlines())))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            return _end_with_bug(error)
        return _end(f"this command needs {missing}: pip install 'labelleak[{_EXTRAS[missing]}]'")
    except MemoryError as error:
        return _end(one_line(f"not enough memory: {error}").removesuffix(":"))
    except OSError as error:
        parts = [str(part) for part in (error.filename, error.strerror) if part]
        return _end(one_line(": ".join(parts) or repr(error)))
    except (Exception, SystemExit) as error:
        return _end_with_bug(error)


def _invoke(words: Sequence[str]) -> int:
    """Run the command that the words name, or answer a shell that asks for a completion."""
    from click.exceptions import ClickException, Exit, UsageError

    from labelleak.cli.group import command_group

    if instruction := os.environ.get(_COMPLETION):
        from click.shell_completion import shell_complete

        failed = shell_complete(command_group, {}, "labelleak", _COMPLETION, instruction)
        return ExitStatus.UNUSABLE if failed else 0
    # Not click's own `main`: on a broken pipe it exits with 1, the status of a verdict.
    try:
        with command_group.make_context("labelleak", list(words)) as context:
            status: int | None = command_group.invoke(context)
            return status or 0
    except Exit as end:
        return end.exit_code
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "labelleak"
        return _end(f"{one_line(error.format_message()).rstrip('.')}; see {command} --help")
    except ClickException as error:
        return _end(one_line(error.format_message()))


def _end(message: str, status: ExitStatus = ExitStatus.UNUSABLE) -> ExitStatus:
    tell(f"labelleak: {message}")
    return status


def _end_with_bug(error: BaseException) -> ExitStatus:
    for line in "".join(traceback.format_exception(error)).splitlines():
        # The indentation of a traceback says which line is code.
        tell(" " * (len(line) - len(line.lstrip())) + one_line(line))
    return _end(
        "internal error: this is a bug of labelleak; please report it with the command and the "
        f"lines above: {one_line(repr(error))}",
        ExitStatus.INTERNAL_ERROR,
    )
