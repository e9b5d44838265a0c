"""The exit statuses that no verdict of an audit has."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended; 0, 1 and 3 are those of `labelleak.audit.Verdict`."""

    UNUSABLE = 2
    """Wrong usage, input that cannot be used, or an experiment that could not be run."""
    INTERNAL_ERROR = 70
    """A bug; EX_SOFTWARE of sysexits.h."""
    INTERRUPTED = 130
    """128 + SIGINT, as a shell has it."""
    NOBODY_READS = 141
    """128 + SIGPIPE: the reader of the output is gone."""
