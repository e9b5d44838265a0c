"""Which labels, and how many of each, does a federated-learning update give away?

An update goes in, the labels it gives away come out, with how sure we are and why:

    observation = labelleak.observe(model, gradients, batch_size=24)
    labelleak.restore(observation).counts

A name is loaded on first use: `labelleak --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from labelleak._version import __version__

if TYPE_CHECKING:
    from labelleak.attacks import combine, list_attacks, mean_targets, restore
    from labelleak.errors import (
        AmbiguousHead,
        InvalidObservation,
        LabelLeakError,
        MissingKnowledge,
        UnreadableFile,
    )
    from labelleak.loss import Loss
    from labelleak.metrics import Score, score
    from labelleak.observation import Auxiliary, Head, HeadGradient, Observation
    from labelleak.restoration import Flag, Restoration
    from labelleak.training import LocalTraining
    from labelleak.updates import capture, observe, observe_update

__all__ = [
    "AmbiguousHead",
    "Auxiliary",
    "Flag",
    "Head",
    "HeadGradient",
    "InvalidObservation",
    "LabelLeakError",
    "LocalTraining",
    "Loss",
    "MissingKnowledge",
    "Observation",
    "Restoration",
    "Score",
    "UnreadableFile",
    "__version__",
    "capture",
    "combine",
    "list_attacks",
    "mean_targets",
    "observe",
    "observe_update",
    "restore",
    "score",
]

# The modules that the names above are imported from; a test holds the two together.
_MODULES = {
    "attacks": ("combine", "list_attacks", "mean_targets", "restore"),
    "errors": (
        "AmbiguousHead",
        "InvalidObservation",
        "LabelLeakError",
        "MissingKnowledge",
        "UnreadableFile",
    ),
    "loss": ("Loss",),
    "metrics": ("Score", "score"),
    "observation": ("Auxiliary", "Head", "HeadGradient", "Observation"),
    "restoration": ("Flag", "Restoration"),
    "training": ("LocalTraining",),
    "updates": ("capture", "observe", "observe_update"),
}


def __getattr__(name: str) -> object:
    """Load a public name, or a module of the package, on first use (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"labelleak.{module}"), name)
            globals()[name] = value
            return value
    if not name.startswith("_"):
        try:
            return import_module(f"labelleak.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"labelleak.{name}":
                raise
    raise AttributeError(f"module 'labelleak' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
