"""``labelleak attacks``: what each attack needs, gives, and where it is from."""

import json

import click
from rich.table import Table

from labelleak.attacks import Attack
from labelleak.attacks import attacks as registered
from labelleak.cli.output import console, format_option


@click.command()
@format_option
def attacks(output_format: str) -> None:
    """List the attacks: what each needs, gives and assumes, and where it is from."""
    rows = [_row(entry) for entry in registered().values()]
    if output_format == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(title="Attacks", show_lines=True)
    for column in ("name", "title", "needs", "gives", "assumes", "reference"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*("; ".join(v) if isinstance(v, list) else v for v in row.values()))
    console().print(table)


def _row(entry: Attack) -> dict[str, str | list[str]]:
    return {
        "name": entry.name,
        "title": entry.title,
        "needs": ["the final layer's weight gradient", *(need.value for need in entry.needs)],
        "gives": [given.value for given in entry.gives],
        "assumes": entry.assumes,
        "reference": entry.reference,
    }
