"""The errors that labelleak raises on purpose; every message says what is wrong and what to do."""


class LabelLeakError(Exception):
    """Base of every error that labelleak raises on purpose."""


class InvalidObservation(LabelLeakError, ValueError):
    """What was observed cannot be a head gradient: shapes, NaN, all zeros, an impossible size."""


class AmbiguousHead(LabelLeakError, ValueError):
    """The head cannot be told from names and shapes; the message lists the candidates."""


class MissingKnowledge(LabelLeakError, ValueError):
    """An attack needs something that the observation does not hold; the message names it."""


class UnreadableFile(LabelLeakError, ValueError):
    """A file is not what it should be, or does not fit the file it belongs to."""


class DataNotFound(LabelLeakError, FileNotFoundError):
    """A data set is not where it was looked for; the message lists the places and how to get it."""
