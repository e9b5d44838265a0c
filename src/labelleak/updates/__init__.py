"""From a model and a batch, a gradient, or a before/after pair, to an observation."""

from labelleak.updates.backward import whole_gradient
from labelleak.updates.files import TensorFile, open_tensors
from labelleak.updates.forward import capture
from labelleak.updates.gradients import observe
from labelleak.updates.heads import find_head
from labelleak.updates.limits import Limits
from labelleak.updates.reading import Kind, read_observation
from labelleak.updates.weights import observe_update

__all__ = [
    "Kind",
    "Limits",
    "TensorFile",
    "capture",
    "find_head",
    "observe",
    "observe_update",
    "open_tensors",
    "read_observation",
    "whole_gradient",
]
