"""How many samples and steps an update is made of: what clients say, and what can be counted."""

import math
from dataclasses import replace

from labelleak.errors import InvalidObservation
from labelleak.observation import Observation
from labelleak.training import LocalTraining


def instances_of(
    training: LocalTraining, told: int | None, true_total: int | None = None
) -> int | None:
    """Number of samples that the restored counts add up to.

    An epoch over N samples in batches of K is ``ceil(N / K)`` steps, the last one on fewer samples.
    Fewer steps leave samples out. A site may count all of its labels, or those that took part.

    Args:
        training: The recipe, resolved.
        told: Number of local samples, FedAvg's ``num-examples``; None where it is not known.
        true_total: Number of the site's own labels, if it counted them.

    Returns:
        The number of labels where they were counted, else of local samples.

    Raises:
        InvalidObservation: The labels are neither as many as the local samples nor as many as took
            part.
    """
    if told is None or true_total is None:
        return told if true_total is None else true_total
    took_part = min(training.took_part or told, told)
    if true_total not in (told, took_part):
        raise InvalidObservation(
            f"{true_total} true labels for {told} local samples, of which {took_part} took part: "
            "they must agree"
        )
    return true_total


def with_counted_steps(
    training: LocalTraining, instances: int | None, counted: int | None
) -> tuple[LocalTraining, tuple[str, ...]]:
    """The recipe with the number of local steps that BatchNorm counted, where nobody told one.

    Steps that were told stand. Those that follow from the batch size and the number of samples give
    way to the count: the last batch may have been left out, or the epochs were others than told.

    Args:
        training: The recipe as told.
        instances: Number of local samples, or None.
        counted: See `Buffers.steps`, or None.

    Returns:
        The recipe, and what contradicts what, in words.

    Raises:
        InvalidObservation: The count cannot be that of the epochs told.
    """
    told = training.count_steps(instances)
    if counted is None or counted == told:
        return training, ()
    if told is None:
        return replace(training, steps=counted), ()
    contradiction = f"{told} local steps were told or follow, and BatchNorm counted {counted}"
    size = training.batch_size
    if training.steps is None and instances is not None and size is not None:
        full, all_batches = instances // size, math.ceil(instances / size)
        if counted == full * training.epochs:
            return replace(training, steps=counted), ()
        for batches in (all_batches, full):
            if batches and counted % batches == 0:
                epochs = counted // batches
                recipe = replace(training, steps=counted, epochs=epochs)
                return recipe, (f"{contradiction}: {epochs} epochs are assumed",)
    return training, (f"{contradiction}: the former are used",)


def unknown(training: LocalTraining) -> tuple[str, ...]:
    """What of a recipe nobody told, and what it is taken for, in words."""
    notes = []
    if training.optimizer is None:
        notes.append("the optimizer is not known: it is taken for SGD")
    if training.momentum is None and training.steps != 1:
        notes.append("the momentum is not known: it is taken for 0")
    return tuple(notes)


def approximations(observation: Observation) -> tuple[str, ...]:
    """What an observation does not say as it was, in words.

    The mean of the steps' gradients weighs a sample of a smaller last batch more than others. Which
    samples those are is not known, and not the same from epoch to epoch: all are taken to weigh the
    same, and the counts add up to the number of samples.
    """
    size, total = observation.batch_size, observation.num_instances
    took_part = observation.training.took_part
    if took_part is None or total is None:
        return ()
    if took_part > total:
        return (
            f"the last batch of an epoch has fewer than {size} samples and counts as much as any",
        )
    if took_part < total:
        return (
            f"{took_part} of {total} samples took part in an epoch: their shares stand for all",
        )
    return ()
