"""Virtual clients in stages, until their own error is small, more are in vain, or time is over."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from labelleak.restoration import Flag

TIME_LIMIT = 60.0
"""Seconds after which no further virtual client is trained, unless told otherwise."""

TRAININGS = 60
"""Virtual clients that there are whatever the time, unless a time limit is given."""

SMALL = 0.01
"""Share of the labels that may be wrong, by the attack's own error, when it stops."""

# Over so many stages the error must fall below this share of itself, or more stages are in vain.
_PATIENCE, _GAIN = 2, 0.93

Progress = Callable[[int, float], None]
"""Told how many virtual clients were trained, and the share of labels that may be wrong."""


class Stages(ABC):
    """Virtual clients so far, and how wrong they leave the labels after each stage.

    Attributes:
        trained: Number of virtual clients trained here.
        wrong: Share of the labels that may be wrong, after each stage.
    """

    def __init__(self) -> None:
        self.trained = 0
        self.wrong: list[float] = []

    @property
    @abstractmethod
    def known(self) -> int:
        """Number of virtual clients that an answer can rest on."""

    @abstractmethod
    def step(self) -> None:
        """Train one more virtual client; at the end of a stage, estimate anew."""

    @property
    def error(self) -> float:
        """Share of the labels that may be wrong; NaN where that is not known yet."""
        return self.wrong[-1] if self.wrong else math.nan

    def is_over(self, trainings: int) -> bool:
        """Whether there are enough virtual clients, or more of them hardly tell more."""
        done = self.wrong
        settled = len(done) > _PATIENCE and done[-1] > _GAIN * done[-1 - _PATIENCE]
        return self.trained >= trainings or self.error < SMALL or settled


def run_stages(
    stages: Stages,
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
            stages.step()
            if progress is not None:
                progress(stages.trained, stages.error)
    except KeyboardInterrupt:
        if stages.known < fewest:
            raise
        return (Flag.TIME_LIMIT,)
    return ()


def wrong_labels(errors: Float[Tensor, " classes"]) -> float:
    """Share of the labels that is expected to be wrong: half the sum of absolute normal errors."""
    return float(errors.sum()) / math.sqrt(2.0 * math.pi)
