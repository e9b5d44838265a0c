"""A time limit for searches."""

import time
from collections.abc import Callable


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
        self._end = now() + seconds
        self.ran_out = False

    @property
    def is_over(self) -> bool:
        """Whether the limit has been reached."""
        over = self._now() >= self._end
        self.ran_out = self.ran_out or over
        return over
