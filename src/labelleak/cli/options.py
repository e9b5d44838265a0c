"""Options that several commands share, and a decorator that gathers options in one object."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast

import click

from labelleak.cli.messages import one_line
from labelleak.storage import what_is_at

Command = Callable[..., Any]


def option(*declarations: str, **settings: Any) -> Callable[[str], Callable[[Command], Command]]:
    """Declare what fills the field of a dataclass that is annotated with it.

    Args:
        *declarations: Names of the option, such as ``"--batch-size"``.
        **settings: Whatever `click.option` takes.

    Returns:
        What declares the option, once it is told the field's name.
    """
    return partial(click.option, *declarations, **settings)


def gathered(kind: type, parameter: str) -> Callable[[Command], Command]:
    """Give a command the options of a dataclass, and pass their values as one object.

    Args:
        kind: The dataclass, every field of which is annotated with an `option`.
        parameter: The parameter of the command that takes the object.

    Returns:
        A decorator for the command.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def gather(**values: Any) -> Any:
            own = {one.name: values.pop(one.name) for one in fields(kind)}
            return command(**values, **{parameter: kind(**own)})

        for one in reversed(fields(kind)):
            (declare,) = cast(Any, one.type).__metadata__
            gather = declare(one.name)(gather)
        return gather

    return decorate


class PathOption(click.Path):
    """A path of a file, or of a folder, that can be named in one line."""

    def __init__(self, what: str) -> None:
        """Say what may be there.

        Args:
            what: ``"file"``, ``"folder"`` or ``"file or folder"``.
        """
        super().__init__(
            file_okay=what != "folder", dir_okay=what != "file", path_type=Path, allow_dash=False
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, unless a control character is in it, or a device or pipe is there."""
        if any(ord(char) < 32 or ord(char) == 127 for char in str(value)):
            self.fail(f"{one_line(str(value))!r} has control characters in its name", param, ctx)
        path: Any = super().convert(value, param, ctx)
        kind = what_is_at(path)
        if kind not in ("", "a file", "a folder"):
            self.fail(f"{one_line(str(path))!r} is {kind}, and no file", param, ctx)
        return path


class Seconds(click.FloatRange):
    """A positive number of seconds."""

    def __init__(self) -> None:
        """Take any number above zero."""
        super().__init__(min=0.0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, unless it is NaN: that is outside of no range."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


def attack_option(text: str) -> Callable[[Command], Command]:
    """The option ``--attack NAME``, passed on as `attack`.

    The table of attacks is loaded when a name is checked or completed. A `click.Choice` would load
    it, and torch with it, for every page of help.

    Args:
        text: Text of the help.

    Returns:
        A decorator for the command.
    """
    return click.option(
        "--attack",
        metavar="NAME",
        default="auto",
        show_default=True,
        callback=_check_attack,
        shell_complete=_complete_attack,
        help=text,
    )


def _check_attack(ctx: click.Context, param: click.Parameter, name: str) -> str:
    # While a shell completes another option, the check is skipped.
    if name != "auto" and not ctx.resilient_parsing:
        from labelleak.attacks import find_attack

        try:
            find_attack(name)
        except ValueError as error:
            raise click.BadParameter(one_line(str(error))) from None
    return name


def _complete_attack(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _attacks() if name.startswith(incomplete)]


def _attacks() -> list[str]:
    from labelleak.attacks import list_attacks

    return ["auto", *list_attacks()]


def module_dir_option(command: Command) -> Command:
    """The option ``--module-dir FOLDER``, which adds to where modules are looked for."""
    return click.option(
        "--module-dir",
        type=PathOption("folder"),
        multiple=True,
        expose_value=False,
        is_eager=True,  # before an option that names a module
        callback=_add_folders,
        help="Folder of Python modules that are named as MODULE:NAME; their code is run. May be "
        "given several times. Without it modules are looked for among the installed packages and "
        "in PYTHONPATH.",
    )(command)


def _add_folders(ctx: click.Context, param: click.Parameter, folders: tuple[Path, ...]) -> None:
    from labelleak.plugins import add_folder

    for folder in () if ctx.resilient_parsing else folders:
        add_folder(folder)


def format_option(command: Command) -> Command:
    """The option ``--format table|json``, passed on as `output_format`."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table to read, or JSON on standard output.",
    )(command)


def time_limit_option(command: Command) -> Command:
    """The option ``--time-limit SECONDS``, passed on as `time_limit`."""
    return click.option(
        "--time-limit",
        type=Seconds(),
        metavar="SECONDS",
        help="Time after which the attacks auto, exact, virtual and synthetic end their search, "
        "some time after; ilrg, rlg, pooled and damped refuse what would take longer. Default: 10 "
        "for auto, 60 for the other three.",
    )(command)
