"""The tolerances of exact restoration, each with its reason.

The searches by the head and by the previous layer share them. Limits on the effort of a search
(starts, rounds, memory) stand with that search.
"""

# Arithmetic

DECOMPOSITION = 1e-13
"""Relative error of a singular value decomposition in double precision."""

ARITHMETIC = 1e-12
"""Relative error of a fit in double precision."""

CLIENT_ROUNDING = 5e-6
"""Relative error of q and of embeddings that a client computes in single precision."""

LEAST_ERROR = 1e-6
"""Floor of the errors that equations are weighed by: that of logits in single precision."""

NO_LENGTH = 1e-12
"""A unit vector whose entry for the bias is smaller cannot be scaled to make that entry 1."""

# How many samples a gradient shows

RANK_MARGIN = 4.0
"""A singular value belongs to a sample if it exceeds the largest that noise makes by this factor.

With 2, rounding passes for a further sample of the previous layer where samples are repeated.
"""

NOT_ERROR = 1.5
"""A singular value above the largest that errors make on average is no error, by this factor."""

UNEXPLAINED = 1e-4
"""Relative norm that samples may leave of a gradient: rounding leaves 1e-8 to 1e-5."""

REPEATED_REST = 5e-5
"""The same where the number of samples found is below the rank, so half as much."""

DEFLATION_MARGIN = 3.0
"""A singular value of a rest counts if it exceeds the error of the samples taken out so far."""

# Zeros behind a ReLU

ZERO = 6.0
"""An entry within this many standard errors is zero: with 6, no zero is missed by chance."""

NOT_ZERO = 60.0
"""An entry above this many standard errors is far from zero: ten times as many."""

NEGATIVE = 30.0
"""An entry this many standard errors below zero is no output of a ReLU: as for `ERROR_MARGIN`."""

FEWEST_ZEROS = 10
"""This many zeros more than a mixture can have do not arise by chance."""

SHARE_OF_ZEROS = 0.1
"""The same as a share of the features, since chance zeros grow with their number."""

# What is a sample of the batch

ERROR_MARGIN = 30.0
"""Allowed standard errors: the first points of a search are far less exact than the gradient."""

DIRECTION = 1e-4
"""Allowed relative error of the direction of q or d: logits in single precision, amplified.

With 1e-3, less exact points are taken first and cost certificates.
"""

COMPLEMENT_MARGIN = 3.0
"""Allowed error of 1 - p, in epsilons of the client's arithmetic: a few rounded operations."""

MOST_MISFIT = 0.1
"""Bound on the allowed distance from the column space: a random direction has nearly 1."""

TELLING = 0.03
"""Distances below this share of the allowed one are chance: it is 1 / `ERROR_MARGIN`."""

SAME_SAMPLE = 1e-2
"""Inputs with the same label and a smaller relative difference are the same sample."""

COUPLING = 0.2
"""Samples of one batch couple by 0 up to errors, and a sample and its even mixture by 0.5."""

# How often a sample is in the batch

LEAST_INVERSE_WEIGHT = 0.5
"""Inverse weights of samples are 1 or more for a mean, in units of their class's weight, since the
mean divides by all weights; those of other points are near zero."""

WHOLE_NUMBER = 0.02
"""Relative distance that passes for a whole number: 1 in 25 does by chance."""

FLAT_SLIP = 0.15
"""The same where spare equations are the evidence, and flat directions blur the weight."""

SLIP_MARGIN = 5.0
"""Standard errors of the weight that are allowed on top."""

MOST_SLIP = 0.2
"""Bound on the allowed distance from a whole number: beyond, 1 and 2 are confused."""

MOST_TIMES = 16
"""Most repetitions of a sample: larger whole numbers are too close to each other."""

SURE_TIMES = 0.1
"""Distance from a whole number of a sample that is certain: half of one is a mixture of two."""

LUCK = 1e-6
"""Chance that the spare equations of a point hold which is no sample, where one is certain.

An equation holds by chance as often as its allowed error is large beside what it is of. Descents
try some 1e5 points at most.
"""

# Descents

ARRIVED = 1e-5
"""Distance from the column space at which a descent ends: the errors of the rest are larger."""

NEAR = 0.2
"""Largest distance at which to go on with the whole gradient, whose errors are smaller."""

# The certificate

NEARBY = 0.1
"""Relative distance at which an embedding for another label still is a variant of the first."""

CLEAR = 10.0
"""A sample is seen if leaving it out changes the gradient by this many times its errors."""

DIFFERENT = 0.05
"""Relative difference at which two q are not those of the same sample."""

WORSE = 10.0
"""A hypothesis is excluded if it fits worse than the samples by this factor."""

FITS = 1e-3
"""Least misfit of an excluded hypothesis: in its few steps a fit gets no closer than that."""

LEFT_OVER = 5.0
"""What proven samples may leave of a gradient, in rounding errors: their estimate is rough."""
