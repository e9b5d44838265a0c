"""Grids of experiments in a TOML file: reading one, and saying what is wrong with it."""

import itertools
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from labelleak.errors import UnreadableFile
from labelleak.lab.definition import Experiment
from labelleak.lab.fields import Definition
from labelleak.lab.metric_catalog import metrics_of
from labelleak.lab.study import Study, StudyRow
from labelleak.storage import read_whole

_MOST_BYTES = 2**20


def read_grid(path: Path | str) -> list[Experiment]:
    """Read experiments from a TOML file.

    The table ``[defaults]`` holds fields of `Experiment` that all experiments share, and each
    ``[[experiment]]`` holds the fields of one. Tables such as ``network`` are merged field by
    field. Without any ``[[experiment]]``, the defaults are the only experiment. The table
    ``[grid]`` lists alternatives: every value in it, at any depth, is a list. Each experiment is
    made once for each combination, with the values appended to its name::

        [defaults]
        data = "mnist-sample"
        attacks = ["ilrg", "rlg"]
        trials = 20
        batch = { sampler = "random", size = 24 }

        [[experiment]]
        name = "FCN-3"
        network = { name = "fcn-3" }

        [[experiment]]
        name = "LeNet-5 under noise"
        network = { name = "lenet5" }
        defense = { name = "gaussian_noise", value = 1e-3 }

        [grid]
        batch.size = [8, 24, 64]
        network.activation = ["relu", "swish"]

    Args:
        path: The file.

    Returns:
        The experiments in the order of the file. Of their combinations, the last list of ``[grid]``
        varies fastest.

    Raises:
        UnreadableFile: The file cannot be read or is not such a grid. The message has one line per
            problem, with the experiment, the field and the allowed values.
    """
    path = Path(path)
    try:
        content = tomllib.loads(read_whole(path, _MOST_BYTES).decode())
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:  # of TOML or of UTF-8
        raise UnreadableFile(f"{path}: is not TOML: {error}") from None
    try:
        tables = _tables(content)
        combinations = list(_combinations(content.get("grid", {})))
    except ValueError as error:
        raise UnreadableFile(f"{path}: {error}") from None
    experiments, problems = [], []
    for number, table in enumerate(tables, start=1):
        label = f"experiment {table.get('name', number)!r}"
        for choice in combinations:
            try:
                experiments.append(Experiment.model_validate(_with_choice(table, choice)))
            except ValidationError as error:
                problems += [f"{label}: {line}" for line in problem_lines(error)]
    names = [experiment.name for experiment in experiments]
    problems += [
        f"experiment {name!r}: name: {names.count(name)} experiments have this name"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        lines = list(dict.fromkeys(problems))
        raise UnreadableFile("\n".join(f"{path}: {line}" for line in lines))
    return experiments


def problem_lines(error: ValidationError) -> list[str]:
    """One line per problem of a definition.

    Args:
        error: The error of pydantic.

    Returns:
        Lines ``field.subfield: what is wrong``, with the allowed values.
    """
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(map(str, _place(problem["loc"]))) or "definition"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such field, choose one of {', '.join(_fields_at(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            message = "is missing"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            message = f"a table is needed, with {', '.join(_fields_at(problem['loc']))}"
        else:
            message = message[:1].lower() + message[1:]
            if not isinstance(problem["input"], dict | BaseModel) and "Value" not in problem["msg"]:
                message += f", not {problem['input']!r}"
        lines.append(f"{field}: {message}")
    return lines


def _place(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without pydantic's suffix that names the type it tried."""
    part: type[BaseModel] | None = Experiment
    kept: list[int | str] = []
    for step in location:
        if isinstance(step, str) and part is None:
            break
        kept.append(step)
        if part is not None:
            found = part.model_fields.get(str(step))
            kinds = () if found is None else (found.annotation, *get_args(found.annotation))
            part = next((kind for kind in kinds if _is_definition(kind)), None)
    return tuple(kept)


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The fields that the part of a definition at this location has."""
    part: type[BaseModel] = Experiment
    for step in location:
        annotation = part.model_fields[str(step)].annotation
        part = next(kind for kind in (annotation, *get_args(annotation)) if _is_definition(kind))
    return list(part.model_fields)


def _is_definition(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Definition)


def _tables(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The experiments of a grid file with the defaults filled in, before any combination."""
    unknown = sorted(set(content) - {"defaults", "experiment", "grid"})
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is unknown at the top level: the tables are [defaults], "
            "[[experiment]] and [grid]"
        )
    defaults, tables = content.get("defaults", {}), content.get("experiment", [{}])
    if not isinstance(defaults, dict):
        raise ValueError("defaults is a table: write [defaults]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError("experiment is a list of tables: write [[experiment]]")
    if not tables or (not defaults and tables == [{}]):
        raise ValueError("there is no experiment: write [defaults] or [[experiment]]")
    return [merged(defaults, table) for table in tables]


def merged(*tables: dict[str, Any]) -> dict[str, Any]:
    """Tables merged field by field, at every depth.

    Args:
        *tables: From the weakest to the strongest: where two have a value, the later one counts.

    Returns:
        A new table.
    """
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            below = result.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                value = merged(below, value)  # noqa: PLW2901
            result[key] = value
    return result


Choice = dict[str, Any]
"""Values by dotted field."""


def _combinations(grid: object) -> Iterator[Choice]:
    if not isinstance(grid, dict):
        raise ValueError("grid is a table of lists: write [grid]")
    lists: dict[str, list[object]] = {}
    for field, values in _leaves(grid):
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{field}: a list of alternatives is needed, not {values!r}")
        lists[field] = values
    for choice in itertools.product(*lists.values()):
        yield dict(zip(lists, choice, strict=True))


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_choice(table: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """The table with the chosen values, which are appended to its name."""
    for field, value in choice.items():
        for key in reversed(field.split(".")):
            value = {key: value}  # noqa: PLW2901
        table = merged(table, value)
    if choice and "name" in table:
        values = ", ".join(f"{field}={_short(value)}" for field, value in choice.items())
        table = {**table, "name": f"{table['name']}, {values}"}
    return table


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def grid_study(experiments: Sequence[Experiment], name: str, title: str) -> Study:
    """A user's own experiments as a study, without published figures.

    Args:
        experiments: The experiments, each with its own name.
        name: Name of the study.
        title: Title of the study, for the reader.

    Returns:
        One row per experiment, with the scores of all attacks and the measures asked for.
    """
    rows = tuple(StudyRow(label=e.name, experiment=e) for e in experiments)
    return Study(name=name, title=title, source="", metrics=metrics_of(experiments), rows=rows)
