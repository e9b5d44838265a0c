"""Pooled restoration: one mean embedding from all rows, and the counts that follow from it."""

import torch

from labelleak.attacks.cost import check_pooling
from labelleak.attacks.mean_prediction.counts import counts_of
from labelleak.attacks.mean_prediction.drift import on_the_way
from labelleak.attacks.mean_prediction.mean_logits import (
    MeanLogits,
    mean_logits,
    second_order,
    shrunk,
)
from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction
from labelleak.attacks.multi_label.pooled_labels import pooled_labels
from labelleak.attacks.own_loss.mapped_counts import mapped_counts
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.zero_head import known_prediction, predicts_the_same, proven_by_zeros
from labelleak.loss import MULTI_LABEL
from labelleak.observation import Observation
from labelleak.restoration import Restoration


@register(
    "pooled",
    title="pooled (one mean embedding by least squares)",
    needs=(Need.WEIGHT,),
    gives=(Gives.COUNTS,),
    assumes="predictions that differ little within the batch, as of an untrained network",
    reference="labelleak, documentation of the attack 'pooled'",
    losses=("cross_entropy", "focal", "custom", *MULTI_LABEL),
    pixels=True,
)
def pooled(observation: Observation, *, time_limit: float | None = None) -> Restoration:
    """Restore the counts from the batch's mean embedding.

    Every row of the weight gradient is nearly ``db_i`` times one mean embedding. Its least-squares
    estimate pools all rows, ``e = dW^T db / (db^T db)``, the head turns it into the mean prediction
    ``p = softmax(W e + b)``, and ``n = K (p - db)`` is exact but for the error of p. Time O(C m):
    one pass over the gradient and one over the head.

    Without a bias gradient, db and e are the gradient's top singular pair. This leaves the length
    of e open: it is the one that makes the counts whole and non-negative. Without a batch size, it
    is the smallest one that makes the counts whole, if chance does not explain that.

    Where every label has a sigmoid, the same embedding gives every label's mean residuals, and each
    label an equation of its own. Under a loss of the user's, autograd gives the residual of every
    class, and the bias gradient is a mixture of them.

    Args:
        observation: Needs the head and its weight gradient. If the batch size is not known and the
            gradient does not show it, the result has proportions only.
        time_limit: Seconds; more classes than take longer are refused. None for no limit.

    Returns:
        ``raw``, ``rounded``, ``counts`` and proportions, and a standard error of every count.
        Certified where the head's weight is zero, so that its prediction is known.

    Raises:
        MissingKnowledge: A summed loss, no batch size, and none that the gradient shows; or labels
            with sigmoids and no bias gradient; or too many classes for the time limit.
    """
    if time_limit is not None:
        check_pooling(observation, "pooled", time_limit)
    if observation.loss.kind == "custom":
        return mapped_counts(observation)
    if observation.loss.is_multi_label:
        found = pooled_labels(observation)
    else:
        found = counts_of(observation, pooled_prediction(observation))
    return proven_by_zeros(observation, found)


def pooled_prediction(observation: Observation) -> MeanPrediction:
    """The mean prediction over the batch by pooling, with replicates that show its error.

    The mean of softmax is not the softmax of the mean: samples scatter about the mean embedding,
    which shifts the mean prediction. The shift is applied and counted as an error of its own size,
    since rows do not show the scatter within classes and between them separately.
    """
    if predicts_the_same(observation):
        return known_prediction(observation)
    found = mean_logits(observation)
    return on_the_way(observation, _at_the_start(observation, found), found)


def _at_the_start(observation: Observation, found: MeanLogits) -> MeanPrediction:
    """Before the first step."""
    found = shrunk(observation, found)
    shift, size = second_order(found)
    generator = torch.Generator().manual_seed(5)
    errors = torch.randn(found.replicates.shape, generator=generator, dtype=torch.float64)
    errors = errors.to(shift).mul_(size[:, None])
    return MeanPrediction(
        torch.softmax(found.logits, dim=0) + shift,
        torch.softmax(found.replicates, dim=0).add_(shift[:, None]).add_(errors),
        found.bias_gradient,
        noise=found.noise,
        has_errors=not found.has_learned,
    )
