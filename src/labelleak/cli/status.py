"""Exit statuses besides those of an audit's verdict."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended. 0, 1 and 3 are the statuses of `labelleak.audit.Verdict`."""

    UNUSABLE = 2
    """Wrong usage, input that cannot be used, or an experiment that could not be run."""
    INTERNAL_ERROR = 70
    """A bug in labelleak; EX_SOFTWARE of sysexits.h."""
    INTERRUPTED = 130
    """128 + SIGINT, as shells have it."""
    NOBODY_READS = 141
    """128 + SIGPIPE: the reader of the output is gone."""
