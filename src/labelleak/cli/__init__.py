"""The command line: one file per command, thin over the library."""

import io
import os
import sys
from typing import Any, NoReturn

import click

from labelleak._version import __version__
from labelleak.cli.attacks import attacks
from labelleak.cli.audit import audit
from labelleak.cli.compare import compare
from labelleak.cli.demo import demo
from labelleak.cli.invert import invert
from labelleak.cli.output import one_line
from labelleak.cli.report import report
from labelleak.cli.reproduce import reproduce
from labelleak.errors import LabelLeakError

# Unusable input is 2; 0, 1 and 3 are verdicts of an audit.
_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
_NOBODY_READS = 141  # 128 + SIGPIPE

_EXTRAS = {
    "jinja2": "cli,report",
    "matplotlib": "cli,report",
    "pydantic": "cli,experiments,report",
    "joblib": "cli,experiments,report",
    "distributed": "cli,dask,experiments,report",
}
"""What to install where a module is missing."""


class _Commands(click.Group):
    """Commands in the order in which they were added; what stops one has a status of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        # Click itself would print a second line, or take the status of a verdict.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("labelleak: interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # Python flushes once more at its end, and that must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(_NOBODY_READS)


@click.group(
    cls=_Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="labelleak")
def labelleak() -> None:
    """Which labels, and how many of each, does a federated-learning update give away?

    Start with `labelleak demo`; `labelleak audit` does the same for your own files.

    Exit status: 0 audited, at or under the threshold; 1 over it; 2 usage or unreadable input;
    3 inconclusive (the flags say why).
    """


for _command in (demo, audit, attacks, compare, reproduce, invert, report):
    labelleak.add_command(_command)


def run() -> None:
    """Run the command line: whatever goes wrong is one line, and never the status of a verdict."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name from a file may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = labelleak(prog_name="labelleak", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "labelleak"
        _fail(f"{one_line(error.format_message()).rstrip('.')}; see {command} --help")
    except LabelLeakError as error:
        # A file of experiments may have several problems, each on a line of its own.
        _fail("\n".join(map(one_line, str(error).splitlines())))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            _fail_internally(error)
        _fail(f"this command needs {missing}: pip install 'labelleak[{_EXTRAS[missing]}]'")
    except MemoryError as error:
        _fail(one_line(f"not enough memory: {error}").removesuffix(":"))
    except OSError as error:
        parts = [str(part) for part in (error.filename, error.strerror) if part]
        _fail(one_line(": ".join(parts) or repr(error)))
    except Exception as error:
        _fail_internally(error)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int = 2) -> NoReturn:
    click.echo(f"labelleak: {message}", err=True)
    sys.exit(status)


def _fail_internally(error: Exception) -> NoReturn:
    what = one_line(f"{type(error).__name__}: {error}")
    _fail(f"internal error, please report it with the command: {what}", _INTERNAL_ERROR)
