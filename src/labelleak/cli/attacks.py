"""``labelleak attacks``: what each attack needs and gives, and the paper it is from."""

import json
from typing import TYPE_CHECKING

import click

from labelleak.cli.console import console
from labelleak.cli.options import format_option
from labelleak.cli.tables import print_attacks

if TYPE_CHECKING:
    from labelleak.attacks import Attack


@click.command("attacks")
@format_option
def attacks_command(output_format: str) -> None:
    """List the attacks: what each needs, gives and assumes.

    Each has its paper beside it, and the package that it comes from: other packages add attacks by
    entry points. `labelleak audit --attack` takes the name.
    """
    from labelleak.attacks import list_attacks

    rows = [_row(entry) for entry in list_attacks().values()]
    if output_format == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        print_attacks(rows, console())


def _row(entry: "Attack") -> dict[str, str | list[str]]:
    return {
        "name": entry.name,
        "title": entry.title,
        "needs": [need.value for need in entry.needs] or ["the final layer's gradient"],
        "gives": [given.value for given in entry.gives],
        "assumes": entry.assumes,
        "reference": entry.reference,
        "package": entry.package,
    }
