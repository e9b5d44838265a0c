from dataclasses import dataclass
from typing import Annotated

import click
import pytest

from labelleak.cli.options import attack_option, gathered, option


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
    with pytest.raises(click.BadParameter, match="'irlg' is no attack: choose one of auto, ilrg,"):
        run(main, "--attack", "irlg")
