"""What the samples that a search has found say of the whole batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.evidence import weights_of
from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.search import SampleSearch
from labelleak.attacks.published.ilrg import ilrg
from labelleak.observation import HeadGradient, Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

# Above, iLRG's matrices classes x classes take longer than the whole search.
_DENSE_CLASSES = 4096


@dataclass(frozen=True)
class Findings:
    """Samples found, in the order in which they are shown.

    Attributes:
        labels: Their classes, int64, shape (found,).
        times: How often each is in the batch, int64, shape (found,).
        sure: Whether each stands clear of the gradient's errors, bool, shape (found,).
        embeddings: float64, shape (found, features).
        is_complete: Whether the search has nothing left to find.
        rank: Number of samples that the gradient shows.
        total: Size of the batch, as far as it is known by now.
        too_weak: How many of the samples shown and not found are too weak to be found.
    """

    labels: Int[Tensor, " found"]
    times: Int[Tensor, " found"]
    sure: Bool[Tensor, " found"]
    embeddings: Float[Tensor, "found features"]
    is_complete: bool
    rank: int
    total: int | None
    too_weak: int = 0

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
        return max(0, self.total - self.number - hidden) + unsure + self.too_weak


def known_divisor(observation: Observation) -> float | None:
    """D, by which the loss divides the sum over its samples, where it is known beforehand."""
    if observation.reduction == "sum":
        return 1.0
    if observation.class_weights is not None or observation.batch_size is None:
        return None
    return float(observation.batch_size)


def restoration_from(observation: Observation, search: SampleSearch) -> Restoration:
    """The restoration that a finished search stands for.

    Args:
        observation: What the server sees.
        search: A search that has run on it.

    Returns:
        As `account_for_batch` makes it; samples are ordered by label, and those of one label by the
        sum of their embeddings.
    """
    divisor = _divisor(observation, search)
    evidence = search.evidence(divisor)
    labels, times = search.found.labels, search.times(divisor)
    total = observation.batch_size
    if total is None and search.is_complete and divisor is not None:
        by_divisor = observation.reduction == "mean" and observation.class_weights is None
        total = round(divisor) if by_divisor else int(times.sum())
    order = evidence.embeddings.sum(dim=1).sort(stable=True).indices
    order = order[labels[order].sort(stable=True).indices]
    findings = Findings(
        labels=labels[order],
        times=times[order],
        sure=evidence.sure[order],
        embeddings=evidence.embeddings[order],
        is_complete=search.is_complete,
        rank=search.factors.rank,
        total=total,
        too_weak=evidence.too_weak,
    )
    return account_for_batch(
        observation,
        findings,
        rest=lambda number: _rest(observation, search, divisor, number),
        proven=lambda: (
            divisor is not None
            and _weights_add_up(observation, findings, divisor)
            and evidence.proves()
        ),
    )


def account_for_batch(
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
        The restoration. It has no counts where the size of the batch is not known, or is less than
        the number of samples found; if that size was told, none of these is certain. Nothing is
        certified where nobody told the size: a batch of every sample twice has the same mean
        gradient, and a summed one may hold samples that leave no trace.
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
    found_alone = Restoration(
        present=counts > 0,
        embeddings=findings.embeddings,
        embedding_labels=labels,
        certain=none.index_add(0, labels, times * findings.sure),
        invisible=findings.invisible,
        flags=tuple(flags),
    )
    number = findings.number
    if total is None or number > total:
        return found_alone
    if number < total:
        counts = counts + project_to_counts(rest(total - number), total - number)
    whole = number == total and proven()
    if not told and not whole and Flag.INCOMPLETE not in flags:
        flags.insert(0, Flag.INCOMPLETE)
    return replace(
        found_alone,
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / total,
        certified=whole and told,
        flags=tuple(flags),
    )


def _divisor(observation: Observation, search: SampleSearch) -> float | None:
    """D, as it is known or as the samples found have it; None if they do not agree on one."""
    if search.divisor is not None:
        return search.divisor
    if not len(search.found):
        return None
    middle = float(search.found.inverse_weights.median())
    if observation.class_weights is not None:
        return middle
    # Each tells the number of samples, or a part of it if it is in the batch several times.
    whole = round(middle)
    return float(whole) if abs(middle - whole) < tolerances.WHOLE_NUMBER * middle else None


def _weights_add_up(observation: Observation, findings: Findings, divisor: float) -> bool:
    """Whether the weights of the samples are together what a mean loss divides by."""
    if observation.reduction != "mean":
        return True
    weights = weights_of(observation, findings.times.double())
    weight = float((weights[findings.labels] * findings.times).sum())
    slip = tolerances.WHOLE_NUMBER / max(1, findings.number)
    return abs(weight / divisor - 1.0) < slip


def _rest(
    observation: Observation, search: SampleSearch, divisor: float | None, number: int
) -> Float[Tensor, " classes"]:
    """Real-valued counts of so many samples that were not found.

    By iLRG where it can take what the others leave of the gradient, else by its row sums, which are
    most negative for the classes with most samples.
    """
    classes = observation.classes
    even = torch.full((classes,), number / classes, dtype=torch.float64)
    if search.is_complete:
        # Nothing but rounding is left, and that says nothing.
        return even.to(search.found.labels.device)
    left_over = search.rest_of_head()
    plain = observation.class_weights is None and left_over.shape[1] > observation.head.features
    if plain and divisor is not None and classes <= _DENSE_CLASSES:
        scaled = left_over * (divisor / number)
        gradient = HeadGradient(scaled[:, :-1], scaled[:, -1])
        raw = ilrg(Observation(observation.head, gradient, batch_size=number)).raw
        assert raw is not None
        return raw
    pull = (-left_over.sum(dim=1)).clamp_min(0.0)
    size = float(pull.sum())
    return pull * (number / size) if math.isfinite(size) and size > 0 else even.to(pull)
