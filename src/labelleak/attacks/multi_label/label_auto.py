"""The standard evaluation without knobs for labels that every sample has a set of."""

import math
from dataclasses import replace

from labelleak.attacks.multi_label.label_counts import label_counts_are_sure
from labelleak.attacks.registry import run_attack
from labelleak.errors import MissingKnowledge
from labelleak.numerics import root_mean_square
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

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
        proven = _attempt_labels(observation, "exact", time_limit=_SEARCHING * time_limit)
        if proven is not None:
            return proven
    estimates = [pooled]
    if observation.auxiliary is not None:
        likely = _attempt_labels(observation, "likelihood")
        estimates += [] if likely is None else [likely]
    found = min(estimates, key=_claimed_error)
    return doubted_labels(observation, found, is_treated=is_treated)


def _attempt_labels(
    observation: Observation, name: str, **hyper_parameters: object
) -> Restoration | None:
    try:
        return run_attack(observation, name, **hyper_parameters)
    except MissingKnowledge:
        return None


def _claimed_error(found: Restoration) -> float:
    errors = found.standard_errors
    return math.inf if errors is None else root_mean_square(errors)


def doubted_labels(
    observation: Observation, found: Restoration, *, is_treated: bool
) -> Restoration:
    """The restoration, flagged where its counts are not sure."""
    if observation.num_instances is None or found.counts is None:
        return found
    if label_counts_are_sure(found) and not (is_treated and not found.certified):
        return found
    return replace(found, flags=(*found.flags, Flag.COUNTS_NOT_SURE))
