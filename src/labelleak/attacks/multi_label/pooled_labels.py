"""Pooled restoration of label counts: one mean embedding from all rows."""

import torch
from scipy.special import stdtrit

from labelleak.attacks.certainty import share_right
from labelleak.attacks.multi_label.label_counts import (
    conclude_labels,
    raw_label_counts,
    rounding_of_counts,
)
from labelleak.attacks.multi_label.label_logits import LabelLogits, label_logits
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Flag, Restoration

# If rounding is expected to get a smaller share of the counts right, they are flagged as guesses.
_RIGHT = 0.75


def pooled_labels(observation: Observation) -> Restoration:
    """Counts of labels from the batch's mean embedding.

    The head turns the mean embedding into a mean logit of every label, and the loss that into the
    residuals r0 and r1 of a label that is not there and of one that is. Then ``D db = n r1 +
    (K - n) r0``.

    Args:
        observation: Of a loss with a sigmoid for each label.

    Returns:
        Counts, shape (labels,), each between 0 and K; with standard errors where the network is
        not seen to have learned.
    """
    found, total = label_logits(observation), observation.num_instances
    plain = observation.loss.binary_residuals(found.logits)
    shift = _second_order(observation, found)
    zero, one = plain[0] + shift[0], plain[1] + shift[1]
    scale, bias = total or 1, found.bias_gradient
    raw = raw_label_counts(observation, zero, one, bias, scale)
    moved = observation.loss.binary_residuals(found.replicates.T)
    others = raw_label_counts(
        observation,
        moved[0].T + shift[0][:, None],
        moved[1].T + shift[1][:, None],
        bias[:, None],
        scale,
    )
    student = float(stdtrit(len(raw) - 1, 0.975)) / NORMAL_QUANTILE
    variance = student**2 * (others - raw[:, None]).square().mean(dim=1)
    # The shift counts as an error of its own size.
    variance += (raw - raw_label_counts(observation, *plain, bias, scale)).square()
    variance += rounding_of_counts(observation, zero - one, scale).square()
    errors = variance.sqrt()
    flags: tuple[Flag, ...] = ()
    if total is not None:
        flags = (Flag.NOT_INTEGRAL,) if share_right(errors) < _RIGHT else ()
    known = not found.has_learned and not observation.head.per_pixel
    return conclude_labels(observation, raw, errors if known else None, flags)


def _second_order(observation: Observation, found: LabelLogits) -> tuple[torch.Tensor, ...]:
    """Mean residuals minus those of the mean logit, for samples that scatter about it."""
    mean = found.logits[:, None]
    either = torch.cat([mean + found.samples, mean - found.samples], dim=1).T
    plain = observation.loss.binary_residuals(found.logits)
    moved = observation.loss.binary_residuals(either)
    return tuple(after.mean(dim=0) - before for before, after in zip(plain, moved, strict=True))
