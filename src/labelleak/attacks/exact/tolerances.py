"""The numbers that decide in exact restoration, each with its reason.

The searches by the head and by the previous layer share them. What a search may spend (starts,
rounds, entries in memory) stands with that search.
"""

# Arithmetic

DECOMPOSITION = 1e-13
"""Relative error of a singular value decomposition in double precision."""

ARITHMETIC = 1e-12
"""Relative error of a fit in double precision: no fit comes nearer to a gradient."""

CLIENT_ROUNDING = 5e-6
"""Relative error of q and of embeddings that a client computes in single precision."""

LEAST_ERROR = 1e-6
"""Least error of an equation that is weighed by its errors: logits in single precision."""

NO_LENGTH = 1e-12
"""A unit vector with a smaller entry for the bias cannot be scaled to an embedding."""

# How many samples a gradient shows

RANK_MARGIN = 4.0
"""A singular value is a sample's if it is this many times the largest that noise makes.

Below 4, a client's rounding passes for a sample where some samples are repeated.
"""

UNEXPLAINED = 1e-4
"""Share of the gradient that its samples may leave: rounding leaves 1e-8 to 1e-5, noise more."""

REPEATED_REST = 5e-5
"""The same where repeated samples explain the batch size: half as much, as the rank disagrees."""

DEFLATION_MARGIN = 3.0
"""Singular values of a rest stand above the error that taking samples out leaves by this factor."""

# Zeros behind a ReLU

ZERO = 6.0
"""An entry within so many standard errors of zero is zero: of a million, none is by chance."""

NOT_ZERO = 60.0
"""An entry above so many standard errors is far from zero: ten times the former."""

NEGATIVE = 30.0
"""No ReLU makes an entry so many standard errors below zero: errors add up where samples mix."""

FEWEST_ZEROS = 10
"""So many zeros beyond those that a mixture may have are no chance, however small the layer."""

SHARE_OF_ZEROS = 0.1
"""And such a share of all features, however large it is."""

# What is a sample of the batch

ERROR_MARGIN = 30.0
"""So many standard errors are allowed: those of a search are larger than those of the gradient."""

DIRECTION = 1e-4
"""Relative error of the direction of q: logits in single precision are off by a few 1e-6."""

COMPLEMENT_MARGIN = 3.0
"""One less a probability is off by up to so many epsilons of the client's arithmetic."""

MOST_MISFIT = 0.1
"""Nothing is a sample that is farther from the column space, whatever the errors: chance is 1."""

TELLING = 0.03
"""Distances below this share of what is allowed are chance: a thirtieth is one standard error."""

SAME_SAMPLE = 1e-2
"""Samples of a label that differ by less, relatively, are the same found twice."""

COUPLING = 0.2
"""Beyond errors, samples of one batch couple by 0, and a mixture of two by about 0.5."""

# How often a sample is in the batch

LEAST_INVERSE_WEIGHT = 0.5
"""Of any sample it is at least 1 for a mean, and of anything else near zero or negative."""

WHOLE_NUMBER = 0.02
"""Relative distance from a whole number where the weight is evidence: one in 25 by chance."""

FLAT_SLIP = 0.15
"""The same where spare equations are the evidence, and flat directions blur the weight."""

SLIP_MARGIN = 5.0
"""So many standard errors of the weight are allowed beside."""

MOST_SLIP = 0.2
"""No weight is a sample's that is farther from a whole number, whatever its errors."""

MOST_TIMES = 16
"""Samples are there no more often: the whole numbers of larger ones are too near to each other."""

# Descents

ARRIVED = 1e-5
"""Distance from the column space at which a descent on the rest has arrived: errors are larger."""

NEAR = 0.2
"""Distance from which it is worth to go on with the whole gradient, whose errors are smaller."""

# The certificate

CLEAR = 10.0
"""A sample counts as seen if the gradient would change by so many times its errors without it."""

DIFFERENT = 0.05
"""Largest relative error of a q that is taken for the sample's."""

WORSE = 10.0
"""A hypothesis is excluded if its q differ so many times more than those of the best one do."""

FITS = 1e-3
"""And by more than this: a fit in few steps is no more exact."""

LEFT_OVER = 5.0
"""What proven samples leave of a gradient is within so many times its rounding errors."""
