"""What the samples found, by the head or by the layer before it, say of the whole batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.published.ilrg import ilrg
from labelleak.observation import HeadGradient, Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration
from labelleak.training import LocalTraining

INTEGER = 0.02
"""Largest relative distance from a whole number that is taken for one."""

# Above, iLRG's matrices classes x classes take longer than the whole search.
_DENSE_CLASSES = 4096


@dataclass(frozen=True)
class Findings:
    """Samples that a search found.

    Attributes:
        labels: Their classes, shape (found,).
        times: How often each is in the batch, shape (found,).
        sure: Whether each stands clear of the gradient's errors, shape (found,).
        embeddings: float64, shape (found, features).
        is_complete: Whether the search has nothing left to find.
        rank: Number of samples that the gradient shows.
        total: Size of the batch, as far as it is known by now.
        weak: Of those that the gradient shows and the search did not find, how many are too weak.
    """

    labels: Int[Tensor, " found"]
    times: Int[Tensor, " found"]
    sure: Bool[Tensor, " found"]
    embeddings: Float[Tensor, "found features"]
    is_complete: bool
    rank: int
    total: int | None
    weak: int = 0

    @property
    def number(self) -> int:
        """Number of samples found, each as often as it is there."""
        return int(self.times.sum())

    @property
    def invisible(self) -> int | None:
        """How many samples of the batch the gradient does not show at its precision."""
        if self.total is None:
            return None
        hidden = self.rank - len(self.labels)
        unsure = int((self.times * ~self.sure).sum())
        return max(0, self.total - self.number - hidden) + unsure + self.weak


def concluded(
    observation: Observation,
    findings: Findings,
    *,
    rest: Callable[[int], Float[Tensor, " classes"]],
    proven: Callable[[], bool],
) -> Restoration:
    """Counts of what was found, an estimate for the rest, and which is which.

    Args:
        observation: What the server sees.
        findings: The samples.
        rest: Estimates the counts of so many samples that were not found.
        proven: Whether the samples are proven to be the batch; asked if their number is right.

    Returns:
        The restoration; without counts where the size of the batch is not known, or is less than
        what was found, of which nothing is certain if it was told. Where nobody told it, nothing is
        certified: a batch of every sample twice has the same mean gradient, and a summed one may
        hold samples that leave no trace.
    """
    told = observation.batch_size is not None
    if findings.total is not None and findings.number > findings.total:
        # More than there are: some of them are mixtures of others, or the total was no good guess.
        sure = torch.zeros_like(findings.sure) if told else findings.sure
        findings = replace(findings, sure=sure, total=findings.total if told else None)
    labels, times, total = findings.labels, findings.times, findings.total
    none = torch.zeros(observation.classes, dtype=torch.int64, device=labels.device)
    counts = none.index_add(0, labels, times)
    flags = [] if findings.is_complete else [Flag.INCOMPLETE]
    if findings.invisible:
        flags.append(Flag.INVISIBLE_SAMPLES)
    base = Restoration(
        present=counts > 0,
        embeddings=findings.embeddings,
        embedding_labels=labels,
        certain=none.index_add(0, labels, times * findings.sure),
        invisible=findings.invisible,
        flags=tuple(flags),
    )
    number = findings.number
    if total is None or number > total:
        return base
    if number < total:
        counts = counts + project_to_counts(rest(total - number), total - number)
    whole = number == total and proven()
    if not told and not whole and Flag.INCOMPLETE not in flags:
        flags.insert(0, Flag.INCOMPLETE)
    return replace(
        base,
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / total,
        certified=whole and told,
        flags=tuple(flags),
    )


def weights_add_up(
    observation: Observation,
    labels: Int[Tensor, " found"],
    times: Int[Tensor, " found"],
    divisor: float,
) -> bool:
    """Whether the weights of the samples are together what a mean loss divides by."""
    if not observation.loss.averages:
        return True
    weights = observation.loss.weights(observation.classes, times.double())
    weight = float((weights[labels] * times).sum())
    return abs(weight / divisor - 1.0) < INTEGER / max(1, int(times.sum()))


def estimated(
    observation: Observation,
    left_over: Float[Tensor, "classes columns"],
    divisor: float | None,
    number: int,
) -> Float[Tensor, " classes"]:
    """Real-valued counts of the samples that were not found.

    By iLRG where it can take what the others leave of the gradient, else by its row sums, which are
    most negative for the classes with most samples.

    Args:
        observation: What the server sees.
        left_over: Of weight and, where there is one, bias, side by side.
        divisor: What the loss divided it by, where it is known.
        number: Number of samples that it is made of.
    """
    classes = observation.classes
    plain = (
        observation.loss.class_weights is None and left_over.shape[1] > observation.head.features
    )
    if plain and divisor is not None and classes <= _DENSE_CLASSES:
        scaled = left_over * (divisor / number)
        gradient = HeadGradient(scaled[:, :-1], scaled[:, -1])
        raw = ilrg(
            Observation(observation.head, gradient, training=LocalTraining(batch_size=number))
        ).raw
        assert raw is not None
        return raw
    pull = (-left_over.sum(dim=1)).clamp_min(0.0)
    size = float(pull.sum())
    if not (math.isfinite(size) and size > 0):
        return left_over.new_full((classes,), number / classes)
    return pull * (number / size)
