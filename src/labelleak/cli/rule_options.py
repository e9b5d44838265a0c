"""The options that say what an update is judged by, shared by the commands that judge one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click

from labelleak.cli.options import PathOption, option


@dataclass(frozen=True)
class RuleOptions:
    """What is measured, and how much of it may leave; None where an option was not given."""

    measure: Annotated[
        Literal["advantage", "accuracy", "small-cells", "exact"] | None,
        option(
            "--measure",
            type=click.Choice(["advantage", "accuracy", "small-cells", "exact"]),
            help="What to judge by. advantage: the share of what a guess without the update leaves "
            "open that is restored; accuracy: the share of the labels; small-cells: whether a "
            "class with few samples, or none, is told for sure; exact: whether all counts are "
            "right. Default: accuracy with a --threshold, else advantage.",
        ),
    ]
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            type=float,
            metavar="F",
            help="Largest advantage or accuracy that may leave, from 0 to 1; above it the exit "
            "status is 1. Needs --labels.",
        ),
    ]
    floor: Annotated[
        int | None,
        option(
            "--floor",
            type=int,
            metavar="N",
            help="Smallest count that may be told, with --measure small-cells. Default: 10",
        ),
    ]
    prior: Annotated[
        Path | None,
        option(
            "--prior",
            type=PathOption("file"),
            help="What the public knows of the classes, for the guess: a text file of one share or "
            "count per class. Default: as many of each.",
        ),
    ]

    def check(self, labels: Path | None) -> None:
        """Check the options before a file is read.

        Raises:
            UsageError: A threshold without labels, or with a measure that is no share; a floor
                without small cells.
        """
        if self.threshold is not None and labels is None:
            raise click.UsageError("--threshold needs --labels, the truth to measure accuracy by")
        if self.threshold is not None and self.measure in ("small-cells", "exact"):
            raise click.UsageError(f"--measure {self.measure} has no --threshold: leave it out")
        if self.floor is not None and self.measure != "small-cells":
            raise click.UsageError("--floor goes with --measure small-cells")

    def make(self) -> dict[str, Any]:
        """The rule as arguments of `labelleak.audit.audit_observation`."""
        from labelleak.audit.rule import read_prior

        return {
            "measure": self.measure,
            "threshold": self.threshold,
            "floor": 10 if self.floor is None else self.floor,
            "prior": None if self.prior is None else read_prior(self.prior),
        }
