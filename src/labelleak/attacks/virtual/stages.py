"""Virtual clients in stages, until their own error is small, more are in vain, or time is over."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.virtual.crew import Crew
from labelleak.attacks.virtual.drawing import Drawn
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

_log = logging.getLogger(__name__)

TIME_LIMIT = 60.0
"""Seconds after which no further virtual client is trained, unless told otherwise."""

TRAININGS = 60
"""Virtual clients that there are whatever the time, unless a time limit is given."""

# Share of the labels that may be wrong, by the attack's own error, when it stops.
_SMALL = 0.01
# Errors that more virtual clients make smaller fall with the root of their number. If over so many
# stages the power is below this, more stages are in vain.
_PATIENCE, _LEAST_POWER = 2, 0.167
# Later stages scatter by so many times the error, as sums of squares; within these concentrations
# of ten classes.
_WIDER, _LATER = 3.0, (4.0, 400.0)
# Every class is drawn now and then: the least share of the center, times the number of classes.
_LEAST_SHARE = 0.02

Progress = Callable[[int, float], None]
"""Told how many virtual clients were trained, and the share of labels that may be wrong."""


class Stages(ABC):
    """Virtual clients so far, and how wrong they leave the labels after each stage.

    Attributes:
        trained: Number of virtual clients trained here.
        wrong: Share of the labels that may be wrong, after each stage.
        sizes: Number of virtual clients that an answer rested on then.
    """

    def __init__(self) -> None:
        self.trained = 0
        self.wrong: list[float] = []
        self.sizes: list[int] = []

    @property
    @abstractmethod
    def known(self) -> int:
        """Number of virtual clients that an answer can rest on."""

    @abstractmethod
    def draw(self, ahead: int) -> Drawn:
        """What the next virtual client trains on, where so many drawn ones are not added yet."""

    @abstractmethod
    def shown(self, after: dict[str, Tensor]) -> Any:
        """What is kept of a virtual client, from its state dict; called on several threads."""

    @abstractmethod
    def add(self, drawn: Drawn, shown: Any) -> None:
        """Enter one more virtual client."""

    @abstractmethod
    def end_stage(self) -> None:
        """Estimate anew, and `note` the errors."""

    @property
    @abstractmethod
    def left_of_stage(self) -> int:
        """Virtual clients until the end of this stage."""

    def train_next(self, crew: Crew, trainings: int, progress: Progress | None) -> None:
        """Train as many virtual clients as go side by side, to the end of the stage at most."""
        number = min(crew.size, self.left_of_stage, trainings - self.trained)
        drawn = [self.draw(ahead) for ahead in range(number)]
        for one, shown in zip(drawn, crew.train(drawn, self.shown), strict=True):
            ends = self.left_of_stage == 1
            self.add(one, shown)
            self.trained += 1
            if ends:
                self.end_stage()
            if progress is not None:
                progress(self.trained, self.error)

    def note(self, errors: Float[Tensor, " classes"]) -> None:
        """Write down the standard errors of the shares after a stage."""
        self.wrong.append(wrong_labels(errors))
        self.sizes.append(self.known)
        _log.info("%d virtual clients: error %.3f", self.known, self.error)

    @property
    def error(self) -> float:
        """Share of the labels that may be wrong; NaN where that is not known yet."""
        return self.wrong[-1] if self.wrong else math.nan

    @property
    def has_settled(self) -> bool:
        """Whether more virtual clients hardly tell more; not known of a few."""
        if self.trained < TRAININGS or len(self.wrong) <= _PATIENCE:
            return False
        grew = self.sizes[-1] / self.sizes[-1 - _PATIENCE]
        pace: float = grew**-_LEAST_POWER
        return self.wrong[-1] > self.wrong[-1 - _PATIENCE] * pace

    def is_over(self, trainings: int) -> bool:
        """Whether there are enough virtual clients, or more of them are in vain."""
        return self.trained >= trainings or self.error < _SMALL or self.has_settled


def check_trainings(trainings: int | None, fewest: int) -> None:
    """Refuse a number of virtual clients that no answer can rest on.

    Raises:
        ValueError: It is too small.
    """
    if trainings is not None and trainings < fewest:
        raise ValueError(f"{trainings} virtual clients: at least {fewest} are needed")


def run_stages(
    stages: Stages,
    crew: Crew,
    *,
    fewest: int,
    trainings: int,
    time_limit: float | None,
    progress: Progress | None,
    now: Callable[[], float],
) -> tuple[Flag, ...]:
    """Train virtual clients until there are enough; the flags that this raises.

    Args:
        stages: What is trained.
        crew: Trains them.
        fewest: Virtual clients that an answer can rest on.
        trainings: Most virtual clients.
        time_limit: Seconds; None for `TIME_LIMIT`, or `TRAININGS` where they take longer.
        progress: Called after each.
        now: Reads the clock, in seconds.
    """
    end = now() + (time_limit or TIME_LIMIT)
    needed = fewest if time_limit is not None else min(TRAININGS, trainings)
    try:
        while not stages.is_over(trainings):
            if now() > end and stages.known >= needed:
                return (Flag.TIME_LIMIT,)
            stages.train_next(crew, trainings, progress)
    except KeyboardInterrupt:
        if stages.known < fewest:
            raise
        return (Flag.TIME_LIMIT,)
    return ()


def wrong_labels(errors: Float[Tensor, " classes"]) -> float:
    """Share of the labels that is expected to be wrong: half the sum of absolute normal errors."""
    return float(errors.sum()) / math.sqrt(2.0 * math.pi)


def center_about(shares: Float[Tensor, " classes"]) -> np.ndarray:
    """The shares that virtual clients are drawn about: no class is left out."""
    mixed = (1 - _LEAST_SHARE) * shares.numpy() + _LEAST_SHARE / len(shares)
    return np.asarray(mixed / mixed.sum())


def concentration_about(
    center: np.ndarray, errors: Float[Tensor, " classes"], *, wider: bool = False
) -> float:
    """The sum of a Dirichlet's parameters under which shares scatter somewhat more than they err.

    Args:
        center: Mean of the shares, shape (classes,), summing to one.
        errors: Standard errors of the shares, shape (classes,).
        wider: Whether to scatter by more still.
    """
    scatter = _WIDER * float(errors.square().sum())
    concentration = (1.0 - float((center**2).sum())) / max(scatter, 1e-9)
    low, high = (tens(len(center)) * end for end in _LATER)
    return min(max(concentration / (_WIDER if wider else 1.0), low), high)


def tens(classes: int) -> float:
    """By what concentrations grow with the classes, so that more are drawn as unevenly as ten."""
    return max(classes / 10, 1.0)


def log_uniform(source: np.random.Generator, ends: tuple[float, float]) -> float:
    """A number between two positive ones, whose logarithm may be any with the same probability."""
    low, high = ends
    return float(low * (high / low) ** source.random())


def told_counts(
    observation: Observation,
    total: int,
    shares: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"],
    flags: tuple[Flag, ...],
) -> Restoration:
    """The restoration that shares of the classes stand for, and their standard errors."""
    device = observation.head.weight.device
    raw, off = ((total * values).to(device) for values in (shares, errors))
    return conclude(observation, raw, total, standard_errors=off, errors=off, flags=flags)
