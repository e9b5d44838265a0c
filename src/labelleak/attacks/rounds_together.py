"""What the rounds of a federation tell together of one client's labels."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.certainty import probability_right
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag, Restoration

# Correlation of two rounds' errors, as both come of the same samples. Of `virtual`, on three
# clients and five rounds of the development range, it was 0.2 on average and 0.7 in late rounds.
_CORRELATION = 0.5
# Standard errors between a round and all of them together that chance does not explain.
_APART = 4.0
# Probability from which on counts are sure, and the least error, in counts.
_SURE, _LEAST_ERROR = 0.95, 1e-3


def combine(restorations: Sequence[Restoration]) -> Restoration:
    """Combine what was restored from several rounds of one client over the same data.

    A plain mean is worse than the first round alone, because early rounds tell far more. Every
    class's counts are averaged with the weights, none negative, under which the mean's error is
    least, given the standard errors of the rounds. Errors of two rounds are taken to be correlated
    by 1/2, as they come of the same samples, so rounds that tell far less than others have no
    weight.

    Args:
        restorations: One for each round, all with counts of the same sum. A proven one, the first
            of them, is the answer. Others without standard errors are left out.

    Returns:
        Counts, with standard errors that are at least ``sqrt(1/2)`` of the smallest ones. The flags
        are those of any round, as whoever has all updates has that one, too; `ATTACKS_DISAGREE`
        where a round contradicts all together by more than four standard errors; and
        `COUNTS_NOT_SURE` by the errors of all together.

    Raises:
        InvalidObservation: There are none, they are of label sets, or their classes, numbers of
            samples or proven counts differ.
        MissingKnowledge: None has standard errors.

    Examples:
        >>> import torch
        >>> from labelleak import Restoration, combine
        >>> def told(raw, error):
        ...     raw = torch.tensor(raw, dtype=torch.float64)
        ...     counts = raw.round().long()
        ...     errors = torch.full_like(raw, error)
        ...     return Restoration(counts > 0, counts, raw=raw, standard_errors=errors)
        >>> combine([told([6.2, 1.8], 0.2), told([3.0, 5.0], 2.0)]).counts.tolist()
        [6, 2]
    """
    counted = [one for one in restorations if one.counts is not None]
    if not counted:
        raise InvalidObservation("there is no restoration with counts to combine")
    if any(one.multi_label for one in counted):
        raise InvalidObservation("counts of label sets have no common sum, and are not combined")
    totals = {(len(one.present), int(one.labels().numel())) for one in counted}
    if len(totals) > 1:
        raise InvalidObservation(
            "the restorations are not of the same data: their classes or numbers of samples differ"
        )
    proven = [one for one in counted if one.certified]
    if len({tuple(one.labels().tolist()) for one in proven}) > 1:
        raise InvalidObservation(
            "the restorations are not of the same data: their proven counts differ"
        )
    if proven:
        return proven[0]
    known = [one for one in counted if one.raw is not None and one.standard_errors is not None]
    if not known:
        raise MissingKnowledge(
            "rounds are weighed by their standard errors, and no restoration has any (attacks "
            "'virtual', 'pooled' and 'calibrated' estimate them)"
        )
    total = totals.pop()[1]
    raw, errors, apart = _weighed(known)
    counts = project_to_counts(raw, total)
    flags = {flag for one in known for flag in one.flags} - {Flag.COUNTS_NOT_SURE}
    if apart > _APART:
        flags.add(Flag.ATTACKS_DISAGREE)
    if probability_right(raw, errors, counts) <= _SURE or Flag.ATTACKS_DISAGREE in flags:
        flags.add(Flag.COUNTS_NOT_SURE)
    return replace(
        Restoration(present=counts > 0, counts=counts, raw=raw, standard_errors=errors),
        rounded=raw.clamp(0.0, total).round().long(),
        proportions=counts.double() / total,
        flags=tuple(flag for flag in Flag if flag in flags),
        attack="combined",
    )


def _weighed(
    known: Sequence[Restoration],
) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"], float]:
    """Weighted mean of real-valued counts, its standard errors, and the farthest round from it."""
    raw = torch.stack([one.raw for one in known if one.raw is not None])
    own = torch.stack([one.standard_errors for one in known if one.standard_errors is not None])
    own = own.clamp_min(_LEAST_ERROR)
    weights = _weights(own)
    mean = (weights * raw).sum(dim=0)
    parts = weights * own
    alone, together = parts.square().sum(dim=0), parts.sum(dim=0).square()
    errors = ((1.0 - _CORRELATION) * alone + _CORRELATION * together).sqrt()
    # A round as sure as all together has as many standard errors as that.
    apart = ((raw - mean) / own).abs().max() if len(known) > 1 else torch.zeros(())
    return mean, errors, float(apart) / math.sqrt(2.0 - 2.0 * _CORRELATION)


def _weights(errors: Float[Tensor, "rounds classes"]) -> Float[Tensor, "rounds classes"]:
    """Non-negative weights with sum 1 under which a mean's variance is least.

    Of errors with covariances ``r s_i s_j`` and variances ``s_i^2`` the weights are proportional to
    ``u_i (u_i - r sum u / (1 - r + r R))`` with ``u = 1 / s`` (Sherman and Morrison). Where one is
    negative, it is that of the R - 1 rounds without it.
    """
    precise = errors.reciprocal()
    taken = torch.ones_like(precise, dtype=torch.bool)
    for _ in range(len(errors)):
        number, together = taken.sum(dim=0), (precise * taken).sum(dim=0)
        least = _CORRELATION * together / (1.0 - _CORRELATION + _CORRELATION * number)
        taken &= precise > least
    weights: Tensor = precise * (precise - least) * taken
    return weights / weights.sum(dim=0)
