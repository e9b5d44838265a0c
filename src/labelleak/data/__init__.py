"""Data sets and batch samplers."""

from labelleak.data import samplers
from labelleak.data.dataset import Dataset
from labelleak.data.loading import load, names
from labelleak.data.samplers import draw

__all__ = ["Dataset", "draw", "load", "names", "samplers"]
