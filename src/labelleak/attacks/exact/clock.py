"""A limit of time."""

import time


class Clock:
    """Says when a number of seconds is over.

    Attributes:
        was_asked_late: Whether anyone was told that the time is over.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.was_asked_late = False

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        over = time.monotonic() >= self._end
        self.was_asked_late = self.was_asked_late or over
        return over

    def share(self, part: float) -> "Clock":
        """A clock for a part of what is left."""
        return Clock(part * max(0.0, self._end - time.monotonic()))
