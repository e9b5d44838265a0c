from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click
import pytest

from labelleak.cli.group import command_group
from labelleak.cli.options import PathOption, Seconds, attack_option, gathered, option


@dataclass(frozen=True)
class Size:
    width: Annotated[int, option("--wide", "-w", type=int, required=True)]
    name: Annotated[str | None, option("--name")]


@pytest.fixture
def command():
    @click.command()
    @click.option("--before")
    @gathered(Size, "size")
    @click.option("--after")
    def main(before, size, after):
        return before, size, after

    return main


def run(command, *words):
    with command.make_context("program", list(words)) as context:
        return command.invoke(context)


def test_options_are_handed_over_as_one_object(command):
    found = run(command, "-w", "3", "--after", "x")
    assert found == (None, Size(width=3, name=None), "x")


def test_the_help_lists_them_in_the_order_of_the_fields(command):
    names = [parameter.opts[0] for parameter in command.params]
    assert names == ["--before", "--wide", "--name", "--after"]
    with pytest.raises(click.MissingParameter, match="width"):
        run(command)


def test_an_attack_that_is_not_known_is_refused_with_those_that_are():
    @click.command()
    @attack_option("Which.")
    def main(attack):
        return attack

    assert run(main) == "auto"
    assert run(main, "--attack", "ilrg") == "ilrg"
    with pytest.raises(click.BadParameter, match="no attack named 'irlg': choose auto, ilrg,"):
        run(main, "--attack", "irlg")


@pytest.mark.parametrize("value", ["nan", "0", "-1", "-inf"])
def test_what_is_no_number_of_seconds_is_refused(value):
    with pytest.raises(click.BadParameter, match=f"^'?{value}"):
        Seconds().convert(value, None, None)


def test_every_time_limit_is_one():
    context = click.Context(command_group)
    commands = [
        command_group.get_command(context, name) for name in command_group.list_commands(context)
    ]
    limits = [one for each in commands for one in each.params if one.name == "time_limit"]
    assert len(limits) == 3
    assert all(isinstance(one.type, Seconds) for one in limits)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs POSIX")
class TestPlacesThatAreNoFiles:
    @pytest.mark.parametrize("what", ["file", "folder", "file or folder"])
    def test_a_device_is_refused_as_what_it_is(self, what):
        with pytest.raises(click.BadParameter, match="'/dev/zero' is a device, and no file"):
            PathOption(what).convert("/dev/zero", None, None)

    def test_every_option_that_takes_a_path_refuses_them(self):
        context = click.Context(command_group)
        names = command_group.list_commands(context)
        commands = [command_group.get_command(context, name) for name in names]
        options = [one for command in commands for one in command.params]
        paths = [one for one in options if isinstance(one.type, click.Path | click.File)]
        assert len(paths) > 10
        assert all(isinstance(one.type, PathOption) for one in paths)
