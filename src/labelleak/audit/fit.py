"""Whether the labels that a site scores by can be those that the update was trained on."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.observation import Observation
from labelleak.restoration import UNRELIABLE, Flag, Restoration

# An estimate contradicts a label's number if it is off by more than rounding to whole numbers
# explains, and by more standard errors than chance does, also in the most deviant of many classes.
_MOST_APART = 0.5
_MOST_ERRORS = 6.0


def flag_misfit(
    observation: Observation, found: Restoration, true_counts: Int[Tensor, " classes"]
) -> Restoration:
    """The restoration, flagged `Flag.LABELS_DO_NOT_FIT` where it contradicts the labels.

    A site may draw its batches with replacement (``WeightedRandomSampler``), train on another
    partition, or count labels of samples that took no part. A score against those labels says
    nothing. Certified counts prove it, as they are those of the batch. So does an estimate that is
    off by more than half a sample and six standard errors in some class, unless a flag
    says that its errors are not to be relied on either.

    Args:
        observation: What was seen.
        found: What was restored of it.
        true_counts: The site's own counts, int64, shape (classes,).

    Returns:
        The same restoration, or one with the flag.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> seen = labelleak.capture(model, torch.rand(4, 20), torch.tensor([0, 0, 3, 4]))
        >>> found = labelleak.restore(seen)
        >>> other = torch.tensor([1, 1, 1, 1, 0])
        >>> [flag.name for flag in flag_misfit(seen, found, other).flags]
        ['LABELS_DO_NOT_FIT']
    """
    total = int(true_counts.sum())
    # Where some samples took no part, labels of all of them differ with good reason.
    compared = found.samples if found.multi_label else total
    if observation.training.took_part != compared or not _contradicts(found, true_counts):
        return found
    flags = {*found.flags, Flag.LABELS_DO_NOT_FIT}
    return replace(found, flags=tuple(flag for flag in Flag if flag in flags))


def _contradicts(found: Restoration, true_counts: Tensor) -> bool:
    if found.counts is not None and found.certified:
        return not torch.equal(found.counts, true_counts.to(found.counts))
    doubts = UNRELIABLE - {Flag.COUNTS_NOT_SURE}
    if doubts & set(found.flags) or found.counts is None or found.raw is None:
        return False
    if found.standard_errors is None:
        return False
    apart = (found.raw - true_counts.to(found.raw)).abs()
    return bool(((apart > _MOST_APART) & (apart > _MOST_ERRORS * found.standard_errors)).any())
