"""Which labels, and how many of each, does a federated-learning update give away?

An update goes in, the labels it gives away come out, with how sure we are and why:

    observation = labelleak.observe(model, gradients, batch_size=24)
    labelleak.restore(observation).counts
"""

from labelleak._version import __version__
from labelleak.attacks import list_attacks, restore
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
    "list_attacks",
    "observe",
    "observe_update",
    "restore",
    "score",
]
