"""Attacks that read the set of present classes off the signs of the weight gradient.

With non-negative embeddings e (as after a ReLU) row i of the gradient is the mean of
``(p_i - y_i) e``: entries can be negative only if some sample has the label i.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.registry import Gives, Need, register
from labelleak.numerics import sums_of_rows
from labelleak.observation import Observation
from labelleak.restoration import Restoration

Variant = Literal["extended", "original"]


@register(
    "idlg",
    title="iDLG",
    needs=(Need.WEIGHT,),
    gives=(Gives.SET,),
    assumes="non-negative embeddings; the original: a single sample",
    reference="Zhao, Mopuri and Bilen 2020 (arXiv:2001.02610), section 3; to a batch as in "
    "Ma et al., ICLR 2023, section 4",
)
def idlg(observation: Observation, *, variant: Variant = "extended") -> Restoration:
    """The classes whose gradient row has a negative sum.

    Args:
        observation: Needs the weight gradient only.
        variant: ``"extended"``: every class with a negative row sum. ``"original"``: the one class
            with the most negative row sum, right for a batch of one.

    Returns:
        A set; counts where the set leaves one possibility only.

    Raises:
        ValueError: No variant of that name.
    """
    _check_variant(variant)
    score = sums_of_rows(observation.gradient.weight)
    if variant == "original":
        return restore_set(observation, _smallest(score, 1))
    return restore_set(observation, score < 0)


@register(
    "gradinversion",
    title="GI (GradInversion)",
    needs=(Need.WEIGHT,),
    gives=(Gives.SET,),
    assumes="non-negative embeddings; the original: no class twice in the batch",
    reference="Yin et al., CVPR 2021 (arXiv:2104.07586), equation 5; extended as in Ma et al., "
    "ICLR 2023, section 4",
    losses=("cross_entropy", "focal"),
    pixels=True,
)
def gradinversion(observation: Observation, *, variant: Variant = "extended") -> Restoration:
    """The classes whose gradient row has a negative entry.

    Args:
        observation: Needs the weight gradient; the original also the batch size.
        variant: ``"extended"``: every class with a negative row minimum. ``"original"``: the K
            classes with the smallest row minima, right where no class repeats.

    Returns:
        A set; counts where the set leaves one possibility only.

    Raises:
        ValueError: The original, and the batch size is unknown or above the number of classes; or
            no variant of that name.
    """
    _check_variant(variant)
    score = observation.gradient.weight.amin(dim=1)
    if variant == "original":
        batch = observation.num_instances
        if batch is None or batch > observation.classes:
            raise ValueError(
                "the original GradInversion rule picks K different classes: it needs a batch size "
                f"K of at most {observation.classes}; variant='extended' has no such limit"
            )
        return restore_set(observation, _smallest(score, batch))
    return restore_set(observation, score < 0)


def _check_variant(variant: str) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"variant {variant!r}: use {' or '.join(map(repr, get_args(Variant)))}")


def _smallest(score: Float[Tensor, " classes"], number: int) -> Bool[Tensor, " classes"]:
    chosen = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    chosen[score.sort(stable=True).indices[:number]] = True
    return chosen


def restore_set(observation: Observation, present: Bool[Tensor, " classes"]) -> Restoration:
    """A restoration that knows the present classes, and the counts only where they follow.

    They follow from the set in two cases: one class holds the whole batch, or there are as many
    classes as instances.
    """
    counts = None
    total, size = observation.num_instances, int(present.sum())
    if total is not None and size in (1, total):
        counts = present.long() * (total // size)
    return Restoration(present=present, counts=counts)
