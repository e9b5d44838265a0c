"""From the samples that a search has found to the restoration of the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.search import SampleSearch
from labelleak.attacks.published.ilrg import ilrg
from labelleak.observation import HeadGradient, Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration
from labelleak.training import LocalTraining

# With more classes, iLRG's matrices (classes x classes) take longer than the whole search.
_DENSE_CLASSES = 4096


@dataclass(frozen=True)
class Findings:
    """The samples found, in the order of the restoration, and what is known of the batch.

    Attributes:
        labels: Classes of the samples, int64, shape (found,).
        times: How often each sample is in the batch, int64, shape (found,).
        sure: Whether each sample stands clear of the gradient's errors, bool, shape (found,).
        embeddings: Embeddings of the samples, float64, shape (found, features).
        is_complete: Whether all samples that the gradient shows are found.
        rank: Number of samples that the gradient shows.
        total: Batch size as told or as found, or None.
        too_weak: How many of the samples that are shown, but not found, are too weak to be found.
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
        """Number of samples found, repeated ones counted repeatedly."""
        return int(self.times.sum())

    @property
    def invisible(self) -> int | None:
        """How many samples of the batch the gradient does not show at its precision, or None."""
        if self.total is None:
            return None
        hidden = self.rank - len(self.labels)
        unsure = int((self.times * ~self.sure).sum())
        return max(0, self.total - self.number - hidden) + unsure + self.too_weak


def known_divisor(observation: Observation) -> float | None:
    """What the loss divides the sum over its samples by, or None if the server cannot know."""
    if not observation.loss.averages:
        return 1.0
    if observation.loss.divides_by_weights or observation.batch_size is None:
        return None
    return float(observation.batch_size)


def restoration_from(observation: Observation, search: SampleSearch) -> Restoration:
    """Restore the batch from the samples of a finished search.

    Args:
        observation: What the server sees.
        search: A search on it that has run.

    Returns:
        The restoration, as `account_for_batch` returns it. Samples are ordered by label, and
        samples of one label by the sum of their embeddings.
    """
    divisor = _divisor(observation, search)
    evidence = search.evidence(divisor)
    labels, times = search.found.labels, search.times(divisor)
    total = observation.batch_size
    if total is None and search.is_complete and divisor is not None:
        by_divisor = observation.loss.averages and not observation.loss.divides_by_weights
        # A divisor of more than twice the samples found is nothing that they have in common.
        total = int(times.sum()) if not by_divisor else round(divisor)
        total = total if total < 2 * int(times.sum()) else None
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
    """Count the samples found, and estimate the counts of the others.

    Args:
        observation: What the server sees.
        findings: The samples found.
        rest: Estimates the counts of a number of samples that were not found.
        proven: Tests whether the samples are proven to be the batch; called if their number fits.

    Returns:
        The restoration. It has no counts if the batch size is unknown or below the number of
        samples found; in the latter case no sample is certain. It is certified only if the server
        was told the batch size: a batch of every sample twice has the same mean gradient, and a
        summed gradient may hide samples that leave no trace.
    """
    told = observation.batch_size is not None
    if findings.total is not None and findings.number > findings.total:
        # Too many were found: some are mixtures, or the batch size was estimated wrongly.
        sure = torch.zeros_like(findings.sure) if told else findings.sure
        findings = replace(findings, sure=sure, total=findings.total if told else None)
    whole = findings.number == findings.total and proven()
    if whole:
        # What is proven of the batch is proven of every sample.
        findings = replace(findings, sure=torch.ones_like(findings.sure))
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
    """The known divisor, or else the one that the samples found agree on; None if they do not."""
    if search.divisor is not None:
        return search.divisor
    if not len(search.found):
        return None
    middle = float(search.found.inverse_weights.median())
    if observation.loss.divides_by_weights:
        return middle
    # Each inverse weight is the number of samples, or a fraction of it for a repeated sample.
    whole = round(middle)
    return float(whole) if abs(middle - whole) < tolerances.WHOLE_NUMBER * middle else None


def _weights_add_up(observation: Observation, findings: Findings, divisor: float) -> bool:
    """Whether the class weights of the samples add up to the divisor of a mean loss."""
    if not observation.loss.averages:
        return True
    weights = observation.loss.divisor_weights(observation.classes, findings.times.double())
    weight = float((weights[findings.labels] * findings.times).sum())
    slip = tolerances.WHOLE_NUMBER / max(1, findings.number)
    return abs(weight / divisor - 1.0) < slip


def _rest(
    observation: Observation, search: SampleSearch, divisor: float | None, number: int
) -> Float[Tensor, " classes"]:
    """Estimate the real-valued counts of the samples that were not found.

    iLRG's estimate from the rest of the gradient is taken where it is whole, as before training.
    Otherwise the samples are shared out evenly: on trained networks that is right far more often
    than a fit to what is left.
    """
    classes = observation.classes
    even = torch.full((classes,), number / classes, dtype=torch.float64)
    even = even.to(search.found.labels.device)
    plain = observation.loss.class_weights is None and observation.has_bias
    # Where all is found, only rounding is left of the gradient, which tells no classes apart.
    if search.is_complete or not plain or divisor is None or classes > _DENSE_CLASSES:
        return even
    scaled = search.rest_of_head() * (divisor / number)
    if not float(scaled[:, -1].abs().max()) > 0.0:
        return even
    gradient = HeadGradient(scaled[:, :-1], scaled[:, -1])
    training = LocalTraining(batch_size=number)
    fitted = ilrg(Observation(observation.head, gradient, training=training))
    whole = fitted.raw is not None and Flag.NOT_INTEGRAL not in fitted.flags
    return fitted.raw if whole and fitted.raw is not None else even
