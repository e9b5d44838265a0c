"""The tables and figures of iLRG (Ma et al., ICLR 2023) as studies, at three scales.

Each study is a TOML file in the folder `studies`, beside the published figures. It holds the title,
the source and the metrics of the study, a ``[[panel]]`` for each set of axes, and an
``[[experiment]]`` for each row. The fields of an experiment are those of a user's grid
(`experiment_grid.read_grid`), at the sizes of the paper, and besides

- ``published``: names of the published runs to compare with (`PublishedRun.run`),
- ``panel``, ``series`` and ``x``: its place in a figure,
- ``reason``: why its result may differ, a name of ``reasons.toml``.

An experiment takes missing fields from its ``[panel.defaults]``, then from ``[defaults]``.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, get_args

from labelleak.lab.definition import Experiment
from labelleak.lab.experiment_grid import merged
from labelleak.lab.published_figures import published_runs
from labelleak.lab.scales import at_scale
from labelleak.lab.sources import PUBLISHED_SOURCES, Source
from labelleak.lab.studies import NAMES
from labelleak.lab.study import Scale, Study, StudyRow, stage_title

SCALES: tuple[Scale, ...] = get_args(Scale)
"""Names of the scales, from the smallest."""


def names() -> tuple[str, ...]:
    """The names of the studies, tables first."""
    return NAMES


def study(
    name: str, scale: Scale, sources: Mapping[str, Source | None] = PUBLISHED_SOURCES
) -> Study:
    """A table or figure of the paper as experiments.

    Args:
        name: One of `names`.
        scale: ``paper``: the sizes of the paper. ``quick``: about two hours for all studies
            together on two cores. ``smoke``: a few minutes for all, on the embedded digits alone.
        sources: The data set to use for each one of the paper, see `sources.find_sources`;
            ``smoke`` needs none.

    Returns:
        The study; `Study.omitted` says how it differs from the published one.

    Raises:
        ValueError: There is no such study, or no such scale.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023; see `labelleak.lab.published_figures`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown study {name!r}: choose one of {', '.join(NAMES)}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    full = _read_study(name)
    rows: list[StudyRow] = []
    reports: dict[str, list[str]] = {}
    for row in full.rows:
        fitted, texts = at_scale(row, scale, sources)
        if fitted is not None:
            rows.append(fitted)
        for text in texts:
            reports.setdefault(text, []).append(row.label)
    omitted = tuple(
        f"{text} ({_which(labels, len(full.rows))})" for text, labels in reports.items()
    )
    return full.model_copy(update={"scale": scale, "rows": tuple(rows), "omitted": omitted})


def _which(labels: list[str], rows: int) -> str:
    if len(labels) == rows:
        return "all rows"
    return labels[0] if len(labels) == 1 else f"{len(labels)} of {rows} rows"


@cache
def _read_study(name: str) -> Study:
    """A study at the sizes of the paper."""
    content = _toml(name)
    defaults, panels = content.pop("defaults"), content.pop("panel", [])
    of_panel = {panel["key"]: panel.pop("defaults", {}) for panel in panels}
    tables = [
        merged(defaults, of_panel.get(table.get("panel"), {}), table)
        for table in content.pop("experiment")
    ]
    rows = tuple(_row(table) for table in tables)
    return Study.model_validate({**content, "name": name, "panels": panels, "rows": rows})


def _row(table: dict[str, Any]) -> StudyRow:
    place = {field: table.pop(field) for field in ("panel", "series", "x") if field in table}
    runs, reason = table.pop("published", []), table.pop("reason", None)
    experiment = Experiment.model_validate(table)
    return StudyRow(
        label=experiment.name,
        experiment=experiment,
        published=tuple(published_runs()[run] for run in runs),
        stage=stage_title(experiment.training),
        reason=None if reason is None else _toml("reasons")[reason],
        **place,
    )


def _toml(name: str) -> dict[str, Any]:
    file = resources.files("labelleak.lab") / "studies" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
