"""The command `labelleak`; each of its commands is loaded on first use."""

from importlib import import_module

import click

from labelleak._version import __version__

COMMANDS = ("demo", "audit", "advise", "attacks", "compare", "reproduce", "invert", "report")
"""Names of the commands in the order of the help; `x` is `x_command` of `labelleak.cli.x`."""


class LazyGroup(click.Group):
    """A group that imports a command when it is run, or when the help lists it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of `COMMANDS`."""
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"labelleak.cli.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    "labelleak",
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="labelleak")
def command_group() -> None:
    """Which labels, and how many of each, does a federated-learning update give away?

    Start with `labelleak demo`. `labelleak audit` does the same for your own files.

    Exit status: 0 audited, at or under the threshold; 1 over it; 2 wrong usage, input that cannot
    be used, or an experiment that could not be run; 3 inconclusive (the flags say why); 70 an
    internal error; 130 interrupted.
    """
