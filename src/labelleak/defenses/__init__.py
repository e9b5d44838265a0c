"""What a client may do to an update before it sends it, to give away less.

A defense is a function from gradients by name to gradients by the same names. Those here take their
strength as further arguments: bind them with `functools.partial` to hand a defense around. Inputs
are never modified; dtypes and devices stay as they are.
"""

from labelleak.defenses.observations import Defense, defend
from labelleak.defenses.soteria import soteria, soteria_mask
from labelleak.defenses.transformations import clip_norm, gaussian_noise, quantize, sign, sparsify

__all__ = [
    "Defense",
    "clip_norm",
    "defend",
    "gaussian_noise",
    "quantize",
    "sign",
    "soteria",
    "soteria_mask",
    "sparsify",
]
