"""The table of the ceiling for attacks of moments; used by `claims.py`."""

from collections.abc import Callable
from typing import Any

from markdown_tables import table, three

_ATTACKS = ("pooled", "calibrated", "damped", "rlu", "likelihood")


def ceiling(read: Callable[[str], Any]) -> list[str]:
    """Mean accuracies of a setting, the ceiling last."""
    rows = []
    for row in read("results/benchmark-ceiling.json")["rows"]:
        setting = f"{row['network']}, {row['data']}, {row['steps']} steps, K = {row['size']}"
        means = row["mean"]
        rows.append([setting, *(three(means[name]) for name in ("guess", *_ATTACKS, "ceiling"))])
    return table(["setting", "guess", *(f"`{name}`" for name in _ATTACKS), "ceiling"], rows)


def ceiling_rows(read: Callable[[str], Any]) -> list[str]:
    """Settings of the leaderboard that were held against the ceiling, and the exceptions."""
    rows = read("results/benchmark-ceiling-rows.json")["rows"]
    held = [(row["name"], name, one) for row in rows for name, one in row["excess"].items()]
    over = [
        f"`{name}` by {three(one['mean'])} ({setting})"
        for setting, name, one in held
        if one["mean"] > one["error"]
    ]
    return [
        f"Held against it: {len(rows)} settings, {len(held)} means of an attack in a setting. "
        f"Above it by more than the standard error: {', '.join(over) or 'none'}."
    ]
