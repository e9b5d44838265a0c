"""The published figures of iLRG (Ma et al., ICLR 2023), read from CSV files."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import cast

from labelleak.lab.parts import Activation

FILES = ("published.csv", "published_tables.csv", "published_pictures.csv")
"""The files in the folder `studies`: the authors' public logs, then what only the paper prints."""

_SETTINGS = (
    "run", "source", "dataset", "model", "activation", "stage", "batch_size", "trials",
    "distribution", "classes_known", "defense", "defense_value",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedRun:
    """One published run: its setting and its figures.

    Attributes:
        run: Unique name, the source and a number, such as ``table1/7``.
        source: Table or figure of the paper, such as ``table1``; ``extra_...`` where it is in none.
        dataset: ``mnist``, ``cifar100`` or ``imagenet``.
        model: Network, such as ``fcn-3`` (layers counted as in the paper).
        activation: ``relu``, ``swish`` or ``leaky_relu``.
        stage: Training of the network: ``untrained``, ``iterN`` or ``epochN``.
        batch_size: Instances in a batch, K.
        trials: Number of batches that the figures are means over.
        distribution: How labels were drawn: ``random``, ``extreme`` (one class), ``unique``,
            ``balanced``, ``random2`` (a few classes) or ``custom_imbalanced``.
        classes_known: Whether the attack was told which classes are present.
        defense: ``dp`` (Gaussian noise) or ``sparse`` (sparsification), None without.
        defense_value: Standard deviation, or percent of the entries; None without a defense.
        figures: Published means by name, as in the head of the file. ``leacc``, ``lnacc`` and
            ``irec`` are iLRG's; ``idlg_leacc``, ``gi_leacc`` and ``rlg_leacc`` are those of the
            other attacks. ``instances_C`` is the mean restored number of instances of class C.
    """

    run: str
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
        """The values that are printed as a published figure is.

        Mean squared errors are printed with two digits, numbers of instances are truncated to
        integers, PSNR has two decimals, LPIPS four, and everything else three.

        Args:
            name: A name of `figures`.

        Returns:
            The smallest and the largest such value.
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
def published_runs() -> Mapping[str, PublishedRun]:
    """All published runs by `PublishedRun.run`, in the order of `FILES`.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023, and the logs in its authors' public repository.
    """
    rows: dict[str, PublishedRun] = {}
    for name in FILES:
        text = (resources.files("labelleak.lab") / "studies" / name).read_text(encoding="utf-8")
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        rows |= {cells["run"]: _row(cells) for cells in csv.DictReader(lines)}
    return MappingProxyType(rows)


def _row(cells: dict[str, str]) -> PublishedRun:
    figures = {
        name: float(cell)
        for name, cell in cells.items()
        if cell and name not in _SETTINGS and name != "recovered_instances"
    }
    # "Class 0-10, Class 18-155, Class 92-9": class, dash, mean number of instances.
    for label, count in re.findall(r"Class (\d+)-(\d+)", cells.get("recovered_instances", "")):
        figures[f"instances_{label}"] = float(count)
    value = cells.get("defense_value")
    return PublishedRun(
        run=cells["run"],
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
