"""The command line: one file per command, thin over the library."""

import sys

import click

from labelleak._version import __version__
from labelleak.cli.attacks import attacks
from labelleak.cli.audit import audit
from labelleak.cli.compare import compare
from labelleak.cli.demo import demo
from labelleak.cli.invert import invert
from labelleak.cli.report import report
from labelleak.cli.reproduce import reproduce
from labelleak.errors import LabelLeakError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="labelleak")
def labelleak() -> None:
    """Which labels, and how many of each, does a federated-learning update give away?

    Exit status: 0 audited, at or under the threshold; 1 over it; 2 usage or unreadable input;
    3 inconclusive (the flags say why).
    """


for _command in (attacks, audit, compare, demo, invert, report, reproduce):
    labelleak.add_command(_command)


def run() -> None:
    """Run the command line; an error that labelleak raises on purpose is one line, status 2."""
    try:
        labelleak()
    except LabelLeakError as error:
        click.echo(f"labelleak: {error}", err=True)
        sys.exit(2)
