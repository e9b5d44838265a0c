"""From an estimate of the mean prediction to a restoration: counts with standard errors."""

from labelleak.attacks.certainty import share_right
from labelleak.attacks.conclusion import are_integral, conclude
from labelleak.attacks.evidence import mean_divisor
from labelleak.attacks.mean_prediction.batch_size import fitting_batch_size
from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction, scattered_counts
from labelleak.attacks.presence import believable, favors_few
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

# If rounding is expected to get a smaller share of the counts right, they are flagged as guesses.
_RIGHT = 0.75


def counts_of(observation: Observation, mean: MeanPrediction) -> Restoration:
    """Counts with standard errors; without a batch size, those of the size that fits, or shares.

    Raises:
        MissingKnowledge: A summed loss, no batch size, and none that the gradient shows.
    """
    size, pixels = observation.batch_size, observation.head.per_pixel
    if (
        size is None
        and not pixels
        and observation.classes > 2
        and not favors_few(mean.probabilities)
    ):
        size = fitting_batch_size(observation, mean)
    if size is None:
        mean_divisor(observation)  # refuses a summed loss, which then has no scale
    total = observation.num_instances
    if total is None and size is not None:
        total = size * observation.local_steps // observation.training.epochs
    found = scattered_counts(observation, mean, total or 1, size or 1)
    raw, errors = found.raw, found.standard_errors
    flags: tuple[Flag, ...] = ()
    # A restored bias gradient has unknown errors of its own.
    if total is not None and (
        share_right(errors) < _RIGHT or not (observation.has_bias or are_integral(raw))
    ):
        flags = (Flag.NOT_INTEGRAL,)
    # Pixels of one image are alike, and what is to be segmented differs from the rest: rows do not
    # show how far the estimate is off.
    known = (total is None or observation.has_bias) and mean.has_errors and not pixels
    tell_the_set = observation.num_instances is None and not pixels
    return conclude(
        observation,
        raw,
        total,
        standard_errors=errors if known else None,
        errors=believable(errors, mean.probabilities) if tell_the_set else None,
        flags=flags,
    )
