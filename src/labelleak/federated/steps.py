"""What is known of a client's local training, in FedAvg's terms and in those of an observation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labelleak.checks import whole_number
from labelleak.errors import InvalidObservation, MissingKnowledge

# A rate is kept for every step; the number of samples comes from a client.
_MOST_STEPS = 100_000


@dataclass(frozen=True)
class Step:
    """What is known of a client's local training; None is not known.

    Attributes:
        learning_rate: Of the local SGD, positive; or one for each step.
        batch_size: Samples in one step; a smaller last batch of an epoch is allowed for.
        local_steps: Number of optimiser steps in all epochs together; None to count them from the
            other three.
        local_epochs: Passes over the local data.
        instances: Number of local samples, FedAvg's ``num-examples``.
        momentum: Of the local SGD, without dampening.
        weight_decay: Of the local SGD.
        proximal: FedProx's factor mu.
    """

    learning_rate: float | Sequence[float] | None = None
    batch_size: int | None = None
    local_steps: int | None = None
    local_epochs: int = 1
    instances: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """How many samples an update is made of, in the terms of an `Observation`.

    Attributes:
        knowledge: ``batch_size``, ``local_epochs`` and ``instances`` of the observation.
        local_steps: Number of optimiser steps.
        approximations: What the observation does not say as it was, in words.
    """

    knowledge: Mapping[str, int | None]
    local_steps: int
    approximations: tuple[str, ...] = ()


def steps_of(step: Step, samples: int | None, *, one_step: bool = False) -> int:
    """Number of optimiser steps of a local training, as said or counted; see `sizes_of`.

    Args:
        step: What is known; its numbers are taken as they are.
        samples: Number of local samples, None where that is not known.
        one_step: The update is a gradient: one step an epoch, where nothing else is said.

    Raises:
        MissingKnowledge: It is not said and cannot be counted.
    """
    if step.local_steps is not None:
        return step.local_steps
    if samples is not None and step.batch_size is not None:
        return math.ceil(samples / step.batch_size) * step.local_epochs
    if one_step:
        return step.local_epochs
    raise MissingKnowledge(
        "the number of local steps is not known: give local_steps, or both batch_size and the "
        "number of local samples (instances)"
    )


def sizes_of(step: Step, true_total: int | None = None, *, one_step: bool = False) -> Sizes:
    """Put FedAvg's terms into those of an observation.

    An epoch over N samples in batches of B is ``ceil(N / B)`` steps, the last one on fewer samples.
    The mean of the steps' gradients, which the update shows, then weighs a sample of that batch
    more than others. Which samples those are is not known, and the same for none from epoch to
    epoch: all are taken to weigh the same, and the counts add up to N.

    Args:
        step: What is known.
        true_total: Number of true labels; stands in for ``step.instances`` where that is not known.
        one_step: The update is a gradient: one step, where nothing else is said.

    Returns:
        The sizes.

    Raises:
        MissingKnowledge: The number of steps is not known and cannot be counted.
        InvalidObservation: A number is impossible, or the true labels are neither as many as the
            local samples nor as many as took part.
    """
    for what in ("batch_size", "local_steps", "local_epochs", "instances"):
        value = getattr(step, what)
        if value is not None:
            whole_number(what.replace("_", " "), value)
    size, epochs = step.batch_size, step.local_epochs
    total = step.instances if step.instances is not None else true_total
    steps = steps_of(step, total, one_step=one_step)
    if steps > _MOST_STEPS:
        raise InvalidObservation(f"{steps} local steps: at most {_MOST_STEPS} can be audited")
    if total is None:
        return Sizes({"batch_size": size, "local_epochs": epochs}, steps)
    notes = []
    size = math.ceil(total * epochs / steps) if size is None else min(size, total)
    took_part = size * steps // epochs
    if true_total not in (None, total, min(took_part, total)):
        raise InvalidObservation(
            f"{true_total} true labels for {total} local samples, of which "
            f"{min(took_part, total)} took part: they must agree"
        )
    total = total if true_total is None else true_total
    if took_part > total:
        notes.append(
            f"the last batch of an epoch has fewer than {size} samples and counts as much as any"
        )
    elif took_part < total:
        notes.append(
            f"{took_part} of {total} samples took part in an epoch: their shares stand for all"
        )
    known = {"batch_size": size, "local_epochs": epochs}
    if took_part != total:
        known["instances"] = total
    return Sizes(known, steps, tuple(notes))
