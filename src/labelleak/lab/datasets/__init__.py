"""Data sets and batch samplers."""

from labelleak.lab.datasets import samplers
from labelleak.lab.datasets.dataset import Dataset
from labelleak.lab.datasets.loading import load, names
from labelleak.lab.datasets.samplers import draw

__all__ = ["Dataset", "draw", "load", "names", "samplers"]
