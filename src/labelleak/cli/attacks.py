"""``labelleak attacks``: what each attack needs, gives, and where it is from."""

import json

import click
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from labelleak.attacks import Attack
from labelleak.attacks import list_attacks as registered
from labelleak.cli.output import console, format_option


@click.command()
@format_option
def attacks(output_format: str) -> None:
    """List the attacks: what each needs, gives and assumes.

    And the paper that each is from. The name is what `labelleak audit --attack` takes.
    """
    rows = [_row(entry) for entry in registered().values()]
    if output_format == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    target = console()
    for row in rows:
        target.print(Text.assemble((str(row["name"]), "bold"), f": {row['title']}"))
        facts = Table.grid(padding=(0, 2))
        for key in ("needs", "gives", "assumes", "reference"):
            value = row[key]
            facts.add_row(key, "; ".join(value) if isinstance(value, list) else value)
        target.print(Padding(facts, (0, 0, 1, 2)))
    target.print("set: which classes are in the batch; counts: how many samples of each.")


def _row(entry: Attack) -> dict[str, str | list[str]]:
    return {
        "name": entry.name,
        "title": entry.title,
        "needs": ["the final layer's weight gradient", *(need.value for need in entry.needs)],
        "gives": [given.value for given in entry.gives],
        "assumes": entry.assumes,
        "reference": entry.reference,
    }
