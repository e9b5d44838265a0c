"""The standard evaluation without knobs for labels that every sample has a set of."""

import math

from labelleak.attacks.estimates import doubted
from labelleak.attacks.registry import attempt_attack, run_attack
from labelleak.numerics import root_mean_square
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Share of the time for the search for single samples.
_SEARCHING = 0.8


def automatic_labels(
    observation: Observation, *, is_treated: bool, time_limit: float
) -> Restoration:
    """Run what the observation allows and take what can be trusted most.

    A certificate ends it. Otherwise it is the estimate with the least errors; one whose errors are
    not known comes last.

    Args:
        observation: Of a loss with a sigmoid for each label.
        is_treated: Whether the gradient shows a defense.
        time_limit: Seconds, positive.

    Returns:
        What the attack that spoke restored.

    Raises:
        MissingKnowledge: No attack can count the labels here.
    """
    pooled = run_attack(observation, "pooled")
    if pooled.certified:
        return pooled
    if not is_treated and observation.local_steps == 1:
        proven = attempt_attack(observation, "exact", time_limit=_SEARCHING * time_limit)
        if proven is not None:
            return proven
    estimates = [pooled]
    if observation.auxiliary is not None:
        likely = attempt_attack(observation, "likelihood")
        estimates += [] if likely is None else [likely]
    found = min(estimates, key=_claimed_error)
    return doubted(observation, found, is_treated=is_treated)


def _claimed_error(found: Restoration) -> float:
    errors = found.standard_errors
    return math.inf if errors is None else root_mean_square(errors)
