"""Gradient inversion: from a whole network's gradient to the images of the batch."""

from labelleak.inversion.analytic import Analytic
from labelleak.inversion.methods import DLG, IG
from labelleak.inversion.pictures import grid, png
from labelleak.inversion.quality import Quality, assess, match
from labelleak.inversion.reconstruction import Inversion, LabelMode, Method, invert
from labelleak.inversion.task import ImageShape, Progress

__all__ = [
    "DLG",
    "IG",
    "Analytic",
    "ImageShape",
    "Inversion",
    "LabelMode",
    "Method",
    "Progress",
    "Quality",
    "assess",
    "grid",
    "invert",
    "match",
    "png",
]
