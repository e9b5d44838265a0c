"""From a model and a batch, a gradient, or a before/after pair, to an observation."""

from labelleak.capture.backward import whole_gradient
from labelleak.capture.files import Kind, TensorFile, open_tensors, read_observation
from labelleak.capture.forward import capture
from labelleak.capture.heads import find_head
from labelleak.capture.updates import observe, observe_update

__all__ = [
    "Kind",
    "TensorFile",
    "capture",
    "find_head",
    "observe",
    "observe_update",
    "open_tensors",
    "read_observation",
    "whole_gradient",
]
