"""The published figures of iLRG (Ma et al., ICLR 2023), as data."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal, cast

Activation = Literal["relu", "swish", "leaky_relu"]

_FILES = ("published.csv", "published_tables.csv", "published_pictures.csv")
_SETTINGS = (
    "source", "dataset", "model", "activation", "stage", "batch_size", "trials", "distribution",
    "classes_known", "defense", "defense_value",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedRow:
    """One published run: how it was made, and its figures.

    Attributes:
        file: The file of this package that holds it: ``published.csv`` for the authors' public
            logs, ``published_tables.csv`` and ``published_pictures.csv`` for what the paper alone
            prints.
        line: Number of the row in that file, from 1, comments and heading not counted.
        source: Table or figure of the paper, such as ``table1``; ``extra_...`` where it is in none.
        dataset: ``mnist``, ``cifar100`` or ``imagenet``.
        model: Network, such as ``fcn-3`` (layers counted as the paper does).
        activation: ``relu``, ``swish`` or ``leaky_relu``.
        stage: ``untrained``, ``iterN`` or ``epochN``: how far it was trained.
        batch_size: Instances in a batch, K.
        trials: Batches that the figures are means over.
        distribution: How labels were drawn: ``random``, ``extreme`` (one class), ``unique``,
            ``balanced``, ``random2`` (a few classes) or ``custom_imbalanced``.
        classes_known: Whether the attack was told which classes are present.
        defense: ``dp`` (Gaussian noise) or ``sparse`` (sparsification), None without.
        defense_value: Its strength: standard deviation, or percent of the entries; None without.
        figures: Published means by name, as in the head of the file: ``leacc``, ``lnacc`` and
            ``irec`` are iLRG's, ``idlg_leacc``, ``gi_leacc`` and ``rlg_leacc`` those of the
            baselines. ``instances_C`` is the mean restored number of instances of class C.
    """

    file: str
    line: int
    source: str
    dataset: str
    model: str
    activation: Activation
    stage: str
    batch_size: int
    trials: int
    distribution: str
    classes_known: bool
    defense: str | None
    defense_value: float | None
    figures: Mapping[str, float]

    def spread(self, name: str) -> tuple[float, float]:
        """What a published figure may have been before it was printed.

        Args:
            name: A name of `figures`.

        Returns:
            The smallest and the largest value that are printed as it is: mean squared errors have
            two digits, numbers of instances are cut off to integers, PSNR has two decimals, LPIPS
            four, all else three.
        """
        value = self.figures[name]
        if name.startswith("instances_"):
            return value, value + 1
        if name.startswith(("psnr", "lpips")):
            half = 0.005 if name.startswith("psnr") else 0.00005
            return value - half, value + half
        half = 0.05 * 10.0 ** math.floor(math.log10(value)) if name.endswith("_mse") else 0.0005
        return value - half, value + half


@cache
def published() -> tuple[PublishedRow, ...]:
    """All published runs, in the order of the files.

    Returns:
        The rows of the authors' logs, then those of the tables that only the paper prints.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023, and the logs in its authors' public repository.
    """
    rows = []
    for name in _FILES:
        text = (resources.files("labelleak.lab") / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        rows += [_row(name, at, cells) for at, cells in enumerate(csv.DictReader(lines), start=1)]
    return tuple(rows)


def find(source: str, **settings: object) -> tuple[PublishedRow, ...]:
    """The published rows of a table or figure with the given settings.

    Args:
        source: As `PublishedRow.source`.
        **settings: Attributes of `PublishedRow` and what they must be, such as ``batch_size=24``.

    Returns:
        All rows that fit, in the order of the file; none is no error.
    """
    return tuple(
        row
        for row in published()
        if row.source == source
        and all(getattr(row, name) == value for name, value in settings.items())
    )


def _row(file: str, line: int, cells: dict[str, str]) -> PublishedRow:
    figures = {
        name: float(cell)
        for name, cell in cells.items()
        if cell and name not in _SETTINGS and name != "recovered_instances"
    }
    # "Class 0-10, Class 18-155, Class 92-9": class, dash, mean number of instances.
    for label, count in re.findall(r"Class (\d+)-(\d+)", cells.get("recovered_instances", "")):
        figures[f"instances_{label}"] = float(count)
    value = cells.get("defense_value")
    return PublishedRow(
        file=file,
        line=line,
        source=cells["source"],
        dataset=cells["dataset"],
        model=cells["model"],
        activation=cast(Activation, cells["activation"]),
        stage=cells["stage"],
        batch_size=int(cells["batch_size"]),
        trials=int(cells["trials"]),
        distribution=cells["distribution"],
        classes_known=cells["classes_known"] == "yes",
        defense=cells.get("defense") or None,
        defense_value=float(value) if value else None,
        figures=MappingProxyType(figures),
    )
