"""The standard evaluation without knobs for labels that every sample has a set of."""

from dataclasses import replace

from labelleak.attacks.multi_label.label_counts import label_counts_are_sure
from labelleak.attacks.registry import run_attack
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration


def automatic_labels(observation: Observation, *, is_treated: bool) -> Restoration:
    """Run what the observation allows and take what can be trusted most.

    Args:
        observation: Of a loss with a sigmoid for each label.
        is_treated: Whether the gradient shows a defense.

    Returns:
        What the attack that spoke restored.

    Raises:
        MissingKnowledge: No attack can count the labels here.
    """
    found = run_attack(observation, "pooled")
    return doubted_labels(observation, found, is_treated=is_treated)


def doubted_labels(
    observation: Observation, found: Restoration, *, is_treated: bool
) -> Restoration:
    """The restoration, flagged where its counts are not sure."""
    if observation.num_instances is None or found.counts is None:
        return found
    if label_counts_are_sure(found) and not (is_treated and not found.certified):
        return found
    return replace(found, flags=(*found.flags, Flag.COUNTS_NOT_SURE))
