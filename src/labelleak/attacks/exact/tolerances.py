"""The numbers that decide in exact restoration, each with its reason.

The searches by the head and by the previous layer share them. What a search may spend (starts,
rounds, entries in memory) stands with that search.
"""

# Arithmetic: relative errors.

DECOMPOSITION = 1e-13
"""Of a singular value decomposition in double precision."""

ARITHMETIC = 1e-12
"""Of a fit to a gradient in double precision: it comes no nearer."""

CLIENT_ROUNDING = 5e-6
"""Of q and of embeddings that the client computed in single precision."""

LOGITS = 1e-4
"""Of the direction of q: logits in single precision are off by a few 1e-6, times up to 30."""

LAYER_OUTPUTS = 1e-3
"""LOGITS"""

LEAST_ERROR = 1e-6
"""Least error of an equation that others are weighed against: logits in single precision."""

# The rank of a gradient: how many samples it shows.

RANK_MARGIN = 4.0
"""A singular value this many times above the largest that noise makes is a sample's."""

UNEXPLAINED = 1e-4
"""Share of a gradient that may be left by its samples: rounding leaves 1e-8 to 1e-5."""

DEFLATION_MARGIN = 3.0

REPEATED_REST = 5e-5

# Zeros
ZERO = 6.0
NEGATIVE = 30.0
NO_LENGTH = 1e-12
FEWEST_ZEROS = 10
SHARE_OF_ZEROS = 0.1

SAME_SAMPLE = 1e-2
ERROR_MARGIN = 30.0
COMPLEMENT_MARGIN = 3.0
MOST_MISFIT = 0.1
TELLING = 0.03
WHOLE_NUMBER = 0.02
FLAT_SLIP = 0.15
SLIP_MARGIN = 5.0
MOST_SLIP = 0.2
MOST_TIMES = 16
LEAST_INVERSE_WEIGHT = 0.5
COUPLING = 0.2
ARRIVED = 1e-5
NEAR = 0.2

CLEAR = 10.0
DIFFERENT = 0.05
WORSE = 10.0
FITS = 1e-3
STANDS_OFF = 5.0
