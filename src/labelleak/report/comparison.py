"""Attacks side by side: a map of their scores by setting, and what stands behind each cell."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from labelleak.report.pages import embedded
from labelleak.report.text import SCORES, number, scores_of_all_batches

MEASURES = {
    "accuracy": "share of the labels restored: 1 is all of them",
    "above_guess": "accuracy less that of an even guess: below 0 is worse than no update at all",
    "exact": "share of the batches with every count right",
    "lnacc": "share of the classes with the right count, before the sum is repaired",
    "leacc": "share of the classes rightly told present or absent",
    "certified": "share of the batches whose counts are proven",
    "coverage": "share of the true counts inside the attack's 95% intervals; 0.95 is right",
}
"""What a cell of the map can show, the first at the start; with its meaning."""

STEPS = 10
"""The map has a color for each tenth of a score, from 0 to this one."""

_TITLES = {**SCORES, "certified": "proven", "coverage": "coverage"}
_BESIDE = ("above_guess", "exact", "lnacc", "leacc", "certified", "coverage")
_OF_ALL = ("accuracy", "exact", "lnacc", "leacc")
_EVEN_GUESS = "uniform"


def comparison(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of attacks that were run on the same settings.

    Args:
        summary: The summary of a study, schema ``labelleak/study/1``.

    Returns:
        ``attacks``, one dict per column of the map, the baselines last; ``settings``, one per row,
        with the ``cells`` of the map and the rows ``behind`` them; ``measures``; ``headline``;
        ``data``, the scores for the page's script. None for a study with published figures, and
        where fewer than two attacks ran, or none restored counts: that is shown as a table.
    """
    rows, attacks = summary["rows"], attacks_in(summary)
    cells = [cell for row in rows for cell in row["metrics"].values()]
    measures: dict[str, dict[str, Any]] = {
        key: {
            "title": _TITLES[key],
            "meaning": meaning,
            "values": [[_shown(row, one, key) for one in attacks] for row in rows],
        }
        for key, meaning in MEASURES.items()
        if any(_score(row, one, key) is not None for row in rows for one in attacks)
    }
    known = any(cell["published"] is not None for cell in cells)
    if known or "accuracy" not in measures or sum(not one["baseline"] for one in attacks) < 2:
        return None
    values = measures["accuracy"]["values"]
    best = [_best(row, attacks) for row in values]
    wins = [sum(place in row for row in best) for place in range(len(attacks))]
    settings = [
        _setting(place, row, attacks, values[place], best[place]) for place, row in enumerate(rows)
    ]
    return {
        "attacks": [one | {"wins": won} for one, won in zip(attacks, wins, strict=True)],
        "settings": settings,
        "measures": measures,
        "beside": [(key, _TITLES[key]) for key in _BESIDE if key in measures],
        "baselined": any(one["baseline"] for one in attacks),
        "guessed": any(setting["guess"] is not None for setting in settings),
        "timed": any(_score(row, one, "seconds") is not None for row in rows for one in attacks),
        "filters": _filters(settings),
        "headline": _headline(attacks, wins, len(rows)),
        "data": embedded(
            {
                "baselines": [one["baseline"] for one in attacks],
                "measures": measures,
                "settings": [setting["traits"] for setting in settings],
            }
        ),
    }


def compact(value: float | None) -> str:
    """A score in the least room: three digits without the zero before the point.

    Examples:
        >>> compact(0.9941), compact(-0.25), compact(1.0), compact(0.0), compact(None)
        ('.994', '-.250', '1', '0', '-')
    """
    text = number(value)
    return {"0.000": "0", "1.000": "1"}.get(text, text.replace("0.", ".", 1))


def level(value: float) -> int:
    """The step of the color scale of a score.

    Examples:
        >>> level(-0.2), level(0.0), level(0.04), level(0.05), level(1.0)
        (0, 0, 0, 1, 10)
    """
    return min(STEPS, max(0, int(STEPS * value + 0.5)))


def attacks_in(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attacks of a study in their order, and after them the baselines.

    Args:
        summary: The summary of a study, schema ``labelleak/study/1``.

    Returns:
        For each its ``name``, whether it is a ``baseline``, and whether it is the ``first`` one.
    """
    found: dict[str, bool] = {}
    for metric in summary["metrics"]:
        if metric["attack"] is not None:
            found.setdefault(metric["attack"], "baseline:" in metric["description"])
    names = sorted(found, key=lambda name: found[name])
    first = next((name for name in names if found[name]), None)
    return [{"name": name, "baseline": found[name], "first": name == first} for name in names]


def _cell(row: Mapping[str, Any], attack: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    metrics, name = row["metrics"], attack["name"]
    if key in _OF_ALL:
        return scores_of_all_batches(metrics, name, _OF_ALL)[key] or {}
    return metrics.get(f"{name}.{key}") or {}


def _score(row: Mapping[str, Any], attack: Mapping[str, Any], key: str) -> float | None:
    """The mean of a score; `above_guess` may follow from the even guess that is beside it."""
    value: float | None = _cell(row, attack, key).get("ours")
    if key == "above_guess" and value is None:
        own, guess = (_score(row, of, "accuracy") for of in (attack, {"name": _EVEN_GUESS}))
        value = None if own is None or guess is None else own - guess
    return value


def _shown(row: Mapping[str, Any], attack: Mapping[str, Any], key: str) -> float | None:
    value = _score(row, attack, key)
    # Minus zero would be shown as such.
    return None if value is None else round(value, 3) + 0.0


def _best(values: Sequence[float | None], attacks: Sequence[Mapping[str, Any]]) -> set[int]:
    """Columns of the best attacks of a setting: none where even the best restored nothing."""
    own = {
        place: value
        for place, (value, one) in enumerate(zip(values, attacks, strict=True))
        if value is not None and not one["baseline"]
    }
    highest = max(own.values(), default=0.0)
    return {place for place, value in own.items() if value == highest > 0.0}


def _headline(attacks: Sequence[Mapping[str, Any]], wins: Sequence[int], settings: int) -> str:
    most = max(wins)
    if not most:
        return "No attack restored a label."
    names = [one["name"] for one, won in zip(attacks, wins, strict=True) if won == most]
    told = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    verb = "restores" if len(names) == 1 else "restore"
    where = f", alone or tied, in {most} of {settings} settings" if settings > 1 else ""
    return f"{told} {verb} the most labels{where}."


def _setting(
    place: int,
    row: Mapping[str, Any],
    attacks: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
    best: set[int],
) -> dict[str, Any]:
    """One row of the map, and the table behind it."""
    guess = _score(row, {"name": _EVEN_GUESS}, "accuracy")
    cells = []
    for column, one in enumerate(attacks):
        value = values[column]
        failed = one["name"] in row["failed"]
        told = failed or any(name.startswith(f"{one['name']}.") for name in row["metrics"])
        cells.append(
            {
                "attack": one["name"],
                "baseline": one["baseline"],
                "text": "fails" if failed and value is None else compact(value),
                "level": None if value is None else level(value),
                "best": column in best,
                "anchor": f"s{place}-a{column}" if told else None,
            }
        )
    behind = [
        _behind(row, one, cell) for one, cell in zip(attacks, cells, strict=True) if cell["anchor"]
    ]
    return {
        "anchor": f"s{place}",
        "label": row["label"],
        "cells": cells,
        "behind": behind,
        "guess": guess,
        "spoke": row.get("spoke") or {},
        "traits": {
            "kind": list(_kinds(row)),
            "network": [row["network"]],
            "data": [row["data"]],
        },
    }


def _behind(
    row: Mapping[str, Any], attack: Mapping[str, Any], cell: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is known of an attack in a setting."""
    accuracy = _cell(row, attack, "accuracy")
    measured = [_cell(row, attack, key)["trials"] for key in MEASURES if _cell(row, attack, key)]
    flags = (row.get("flags") or {}).get(attack["name"]) or {}
    return {
        **cell,
        "trials": max(measured, default=0),
        "planned": row["trials"],
        "accuracy": accuracy.get("ours"),
        "error": accuracy.get("error"),
        "low": accuracy.get("low"),
        "high": accuracy.get("high"),
        "beside": {key: _score(row, attack, key) for key in _BESIDE},
        "seconds": _score(row, attack, "seconds"),
        "flags": [f"{name} {times}" for name, times in flags.items()],
        "set_only": accuracy.get("ours") is None and _score(row, attack, "leacc") is not None,
    }


def _kinds(row: Mapping[str, Any]) -> Iterator[str]:
    """What kind of update a setting has, for the filters."""
    yield "untrained" if str(row["stage_used"]).startswith("untrained") else "trained"
    special = {
        "defended": row["defense"],
        "several local steps": row.get("local"),
        "auxiliary data": row.get("auxiliary"),
    }
    yield from (kind for kind, value in special.items() if value)
    if not any(special.values()):
        yield "one plain gradient"


def _filters(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Values of each trait that tells settings apart."""
    found = {}
    for trait in ("kind", "network", "data"):
        values = sorted({value for setting in settings for value in setting["traits"][trait]})
        if len(values) > 1:
            found[trait] = values
    return found
