"""The targets that a batch may have: class indices, or zeros and ones for every label."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.checks import INDICES
from labelleak.errors import InvalidObservation

MASKED = -1
"""Target of a label that is left out."""


def class_indices(
    labels: Tensor, samples: int, classes: int, ignore_index: int | None
) -> Int[Tensor, " samples"]:
    """Class indices as int64, after making sure that they are.

    Raises:
        InvalidObservation: There is not one class index for each sample, or one is no class.
    """
    if labels.shape != (samples,):
        raise InvalidObservation(
            f"labels of shape {tuple(labels.shape)} for {samples} samples: one class index per "
            "sample is needed"
        )
    if labels.dtype not in INDICES:
        raise InvalidObservation(f"labels are {labels.dtype}: class indices are needed (int64)")
    labels = labels.long()
    kept = labels if ignore_index is None else labels[labels != ignore_index]
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < classes:
        raise InvalidObservation(
            f"labels run from {int(kept.min())} to {int(kept.max())}, and the head has "
            f"classes 0 to {classes - 1}"
        )
    return labels


def label_sets(
    targets: Tensor, samples: int, labels: int, *, masked: bool
) -> Float[Tensor, "samples labels"]:
    """Zeros and ones as float64, after making sure that they are; -1 where that is left out.

    Raises:
        InvalidObservation: The shape is another one, or a target is neither.
    """
    if targets.shape == (samples,) and labels == 1:
        targets = targets[:, None]
    if targets.shape != (samples, labels):
        raise InvalidObservation(
            f"targets of shape {tuple(targets.shape)} for {samples} samples and {labels} labels: "
            "zeros and ones of shape (samples, labels) are needed"
        )
    targets = targets.double()
    allowed = (targets == 0) | (targets == 1)
    if masked:
        allowed |= targets == MASKED
    if not bool(allowed.all()):
        wrong = float(targets[~allowed][0])
        raise InvalidObservation(
            f"a target is {wrong:g}: it must be 0 or 1"
            + (", or -1 where it is left out" if masked else " (masked=True leaves out -1)")
        )
    return targets


def is_kept(targets: Tensor, ignored: int | None) -> Tensor:
    """Which targets take part in the loss, bool, of the shape of the targets."""
    return torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets != ignored


def real_numbers(targets: Tensor, samples: int, outputs: int) -> Float[Tensor, "samples outputs"]:
    """Numbers as float64, after making sure that they are finite, and as many as outputs.

    Raises:
        InvalidObservation: They are not.
    """
    if targets.shape == (samples,) and outputs == 1:
        targets = targets[:, None]
    if targets.shape != (samples, outputs) or not bool(torch.isfinite(targets).all()):
        raise InvalidObservation(
            f"targets of shape {tuple(targets.shape)} for {samples} samples and {outputs} outputs: "
            "one finite number for each is needed"
        )
    return targets.double()
