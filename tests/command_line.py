"""The command line, run in the process of the tests."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

from labelleak.cli.entry import run


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def text(self):
        """The output as one line: a table breaks its lines where it likes."""
        return " ".join(self.out.split())


def labelleak(*words):
    """Run one command line as the entry point does."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run([str(word) for word in words])
    return Done(int(status), out.getvalue(), err.getvalue())
