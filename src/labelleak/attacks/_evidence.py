"""What several attacks read from an observation, and what they make of shares and counts."""

import heapq

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration, project_to_counts, project_to_simplex

_TOTAL_TOLERANCE = 0.05
# Fractions that mean nothing are uniform, and on average 0.25 from an integer. At this bound most
# wrong counts are caught and most right ones let pass (docs/concepts.md has the two rates).
_NOT_INTEGRAL = 0.15


def weights_of(observation: Observation, like: Tensor) -> Float[Tensor, " classes"]:
    """The loss's weight of each class, in the dtype and on the device of another tensor."""
    if observation.class_weights is None:
        return like.new_ones(observation.classes)
    return observation.class_weights.to(like)


def divisor_weights(observation: Observation, like: Tensor) -> Float[Tensor, " classes"]:
    """What a sample of each class adds to the number that the loss divides by, likewise."""
    if observation.reduction == "mean":
        return weights_of(observation, like)
    return like.new_ones(observation.classes)


def mistakes(
    observation: Observation,
    predictions: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
) -> Float[Tensor, "samples classes"]:
    """Derivative of every sample's loss by its logits; ``prediction - one-hot`` for the plain loss.

    Args:
        observation: Says what the loss is.
        predictions: Probabilities of the classes.
        labels: True classes.

    Returns:
        In the dtype of the predictions.
    """
    weights, smoothing = weights_of(observation, predictions), observation.label_smoothing
    targets = (1 - smoothing) * torch.diag(weights) + smoothing / observation.classes * weights
    targets = targets[labels]
    return predictions * targets.sum(dim=1, keepdim=True) - targets


def row_sums(observation: Observation) -> Float[Tensor, " classes"]:
    """Sum of every row of the weight gradient of a mean loss, float64."""
    return observation.gradient.weight.sum(dim=1, dtype=torch.float64) / mean_divisor(observation)


def bias_gradient(observation: Observation) -> Float[Tensor, " classes"]:
    """The bias gradient of a mean loss, float64."""
    if observation.gradient.bias is None:
        raise MissingKnowledge("the final layer's bias gradient is missing")
    return observation.gradient.bias.double() / mean_divisor(observation)


def mean_divisor(observation: Observation) -> int:
    """What the gradient is to be divided by to be that of a mean loss.

    Raises:
        MissingKnowledge: A summed loss, and the batch size is not known.
    """
    if observation.reduction == "mean":
        return 1
    if observation.batch_size is None:
        raise MissingKnowledge(
            "a summed loss needs the batch size (batch_size=K, --batch-size K): without it the "
            "gradient has no scale"
        )
    return observation.batch_size


def instances(observation: Observation) -> int:
    """The number of instances, for attacks that need it."""
    if observation.num_instances is None:
        raise MissingKnowledge("the batch size is missing (batch_size=K, --batch-size K)")
    return observation.num_instances


def emit(
    evidence: Float[Tensor, " classes"],
    impact: Float[Tensor, " classes"],
    total: int,
    offset: Float[Tensor, " classes"] | float = 0.0,
) -> tuple[Int[Tensor, " classes"], tuple[Flag, ...]]:
    """Emit labels one by one, each time for the class with the most negative evidence left.

    The two stages of LLG (Wainakh et al., PETS 2022). Stage 1 emits every class with
    negative evidence once. Stage 2 emits the class of least evidence (less the offset) until there
    are enough labels. Every emission takes the impact of one sample off its class's evidence. A
    heap makes an emission O(log C).

    Args:
        evidence: Shape (classes,), float64, the more negative the more instances.
        impact: What one instance adds to the evidence of its class, negative, shape (classes,).
        total: Number of labels to emit.
        offset: Evidence of a class without any instance, subtracted in stage 2.

    Returns:
        Counts that sum to `total`; ties go to the lowest class. And `TOTAL_DOES_NOT_FIT` where
        stage 1 found more classes than there are labels, of which the most negative stay.
    """
    certain = (evidence < 0).nonzero()[:, 0]
    flags: tuple[Flag, ...] = ()
    if len(certain) > total:
        certain = certain[evidence[certain].sort(stable=True).indices[:total]]
        flags = (Flag.TOTAL_DOES_NOT_FIT,)
    counts = torch.zeros(evidence.shape, dtype=torch.int64, device=evidence.device)
    counts[certain] = 1
    left = evidence.clone()
    left[certain] -= impact[certain]
    left -= offset
    emitted, steps = counts.tolist(), impact.tolist()
    heap = [(value, label) for label, value in enumerate(left.tolist())]
    heapq.heapify(heap)
    for _ in range(total - len(certain)):
        value, label = heap[0]
        emitted[label] += 1
        heapq.heapreplace(heap, (value - steps[label], label))
    return torch.tensor(emitted, device=evidence.device), flags


def emitted(attack: str, counts: Int[Tensor, " classes"], flags: tuple[Flag, ...]) -> Restoration:
    """The restoration of counts that were emitted one by one."""
    return Restoration(
        attack,
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / counts.sum(),
        flags=flags,
    )


def conclude(attack: str, raw: Float[Tensor, " classes"], total: int | None) -> Restoration:
    """Counts, set and proportions that real-valued counts stand for.

    Args:
        attack: Name of the attack.
        raw: Real-valued counts, or shares where the total is not known, shape (classes,).
        total: Number of instances, or None.

    Returns:
        The restoration; flagged where the clipped counts miss the total by more than 5 % and more
        than one.
    """
    proportions = project_to_simplex(raw, total or 1) / (total or 1)
    if total is None:
        return Restoration(attack, present=clear_shares(raw), proportions=proportions, raw=raw)
    counts = project_to_counts(raw, total)
    return Restoration(
        attack,
        present=counts > 0,
        counts=counts,
        rounded=raw.clamp(0.0, total).round().long(),
        proportions=proportions,
        raw=raw,
        flags=() if total_fits(raw, total) else (Flag.TOTAL_DOES_NOT_FIT,),
    )


def clear_shares(shares: Float[Tensor, " classes"]) -> Bool[Tensor, " classes"]:
    """Classes whose shares are clear: above half of that of a median class with any.

    Without the number of instances the smallest share that can be told from an error is not known.
    """
    clipped = shares.clamp(0.0, 1.0)
    return clipped > 0.5 * clipped[clipped > 0].median()


def total_fits(raw: Float[Tensor, " classes"], total: int) -> bool:
    """Whether real-valued counts, clipped at zero and K, miss K by at most 5 % or one."""
    missed = abs(float(raw.clamp(0.0, total).sum()) - total)
    return missed <= max(1.0, _TOTAL_TOLERANCE * total)


def are_integral(raw: Float[Tensor, " unknowns"]) -> bool:
    """Whether real-valued counts are at most 0.15 from the nearest integers on average.

    Over all classes that were solved for, and over those with a count: many absent classes, rightly
    near zero, would hide what is wrong with the others.
    """
    distances = (raw - raw.round()).abs()
    counted = distances[raw > 0.5]
    farthest = max(float(distances.mean()), float(counted.mean()) if counted.numel() else 0.0)
    return farthest <= _NOT_INTEGRAL
