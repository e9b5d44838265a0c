"""Markdown tables, and how numbers stand in them."""

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def three(value: float | None) -> str:
    """A score, or nothing."""
    return "" if value is None else f"{value:.3f}"


def megabytes(value: float) -> str:
    """Bytes in MB."""
    return f"{value / 1e6:.0f}"
