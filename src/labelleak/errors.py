"""The errors that labelleak raises on purpose; every message says what is wrong and what to do."""


class LabelLeakError(Exception):
    """Base of every error that labelleak raises on purpose.

    Examples:
        >>> import labelleak
        >>> try:
        ...     labelleak.Loss(label_smoothing=1.0)
        ... except labelleak.LabelLeakError as error:
        ...     print(type(error).__name__)
        InvalidObservation
    """


class InvalidObservation(LabelLeakError, ValueError):
    """What was observed cannot be a head gradient: shapes, NaN, all zeros, an impossible size.

    Examples:
        >>> import labelleak
        >>> try:
        ...     labelleak.Loss(label_smoothing=-0.1)
        ... except labelleak.InvalidObservation as error:
        ...     print(type(error).__name__)
        InvalidObservation
    """


class AmbiguousHead(LabelLeakError, ValueError):
    """The head cannot be told from names and shapes; the message lists the candidates.

    Examples:
        >>> import torch, labelleak
        >>> model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
        >>> gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        >>> try:
        ...     labelleak.observe(model, gradients)
        ... except labelleak.AmbiguousHead as error:
        ...     print(type(error).__name__)
        AmbiguousHead
    """


class MissingKnowledge(LabelLeakError, ValueError):
    """An attack needs something that the observation does not hold; the message names it.

    Examples:
        >>> import labelleak
        >>> try:
        ...     labelleak.LocalTraining(batch_size=8).resolved()
        ... except labelleak.MissingKnowledge as error:
        ...     print(type(error).__name__)
        MissingKnowledge
    """


class UnreadableFile(LabelLeakError, ValueError):
    """A file is not what it should be, or does not fit the file it belongs to.

    Examples:
        >>> import labelleak
        >>> from labelleak.updates import open_tensors
        >>> try:
        ...     open_tensors("absent.safetensors")
        ... except labelleak.UnreadableFile as error:
        ...     print(error)
        absent.safetensors: no such file
    """


class DataNotFound(LabelLeakError, FileNotFoundError):
    """A data set is not where it was looked for; the message lists the places and how to get it.

    Examples:
        >>> from labelleak.errors import DataNotFound
        >>> from labelleak.lab import datasets
        >>> try:
        ...     datasets.load("mnist", data_dir="absent")
        ... except DataNotFound as error:
        ...     print(type(error).__name__)
        DataNotFound
    """


class BrokenPlugin(LabelLeakError, ValueError):
    """A plug-in of another package or module is not there, or cannot be loaded.

    Examples:
        >>> from labelleak.errors import BrokenPlugin
        >>> from labelleak.plugins import load_object
        >>> try:
        ...     load_object("no_such_module:attack", "attack")
        ... except BrokenPlugin as error:
        ...     print(str(error)[:67])
        attack 'no_such_module:attack': there is no module 'no_such_module'
    """
