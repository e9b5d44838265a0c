"""A time limit for searches."""

import time
from collections.abc import Callable
from functools import cached_property

# Samples found by the limit are judged until this many times it: a limit is kept within half of
# it, and whatever was begun by then has to end, too.
_JUDGING = 1.2


class Clock:
    """Says whether a number of seconds has passed since it was made.

    Args:
        seconds: The time limit.
        now: Reads the time in seconds; only differences matter.

    Attributes:
        seconds: The time limit.
        ran_out: Whether any reading so far was past the limit.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now = now
        self._start = now()
        self.ran_out = False

    @property
    def is_over(self) -> bool:
        """Whether the limit has been reached."""
        over = self._now() >= self._start + self.seconds
        self.ran_out = self.ran_out or over
        return over

    @cached_property
    def judging(self) -> "Clock":
        """The clock for judging what a search has found, which may go on a little longer."""
        later = Clock(_JUDGING * self.seconds, self._now)
        later._start = self._start
        return later
