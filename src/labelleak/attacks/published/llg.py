"""LLG, LLG* and LLG+: labels emitted one by one from the row sums of the weight gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.emission import emit_labels
from labelleak.attacks.evidence import instances, row_sums
from labelleak.attacks.inputs import Dummies, auxiliary_of, dummies
from labelleak.attacks.probe import class_means, probe
from labelleak.attacks.registry import Gives, Need, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration

_REFERENCE = (
    "Wainakh et al., PETS 2022 (User-Level Label Leakage from Gradients in Federated Learning, "
    "arXiv:2105.09369)"
)


@register(
    "llg",
    title="LLG (label leakage from gradients)",
    needs=(Need.WEIGHT, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="non-negative embeddings, and that every sample adds about the same to its row's sum",
    reference=_REFERENCE,
)
def llg(observation: Observation) -> Restoration:
    """Emit labels by the row sums g of the weight gradient.

    A sample of class i lowers g_i by about the impact ``m = (1 + 1/C) / K * sum of the negative
    g``. Every class with a negative row sum is emitted once; then, until there are K labels, the
    class with the least of g is, and m is taken off its row sum each time.

    Args:
        observation: Needs the weight gradient and the batch size.

    Returns:
        Counts that sum to the number of instances.
    """
    evidence, total = row_sums(observation), instances(observation)
    impact = evidence.clamp_max(0.0).sum() / total * (1 + 1 / observation.classes)
    return emit_labels(evidence, impact, total)


@register(
    "llg-star",
    title="LLG*",
    needs=(Need.WEIGHT, Need.BATCH_SIZE, Need.PLAIN_LOSS, Need.MODEL, Need.INPUT_SHAPE),
    gives=(Gives.COUNTS,),
    assumes="non-negative embeddings, and that made-up inputs look like real ones to the network",
    reference=_REFERENCE + ", impact and offset from dummy inputs",
)
def llg_star(
    observation: Observation, *, inputs: Dummies = "random", samples: int = 256
) -> Restoration:
    """LLG with the impact of a sample, and the offset of a class, from dummy inputs.

    For a batch of dummies all labeled c the row sums are ``mean of (p_i - [i = c]) s``, with the
    prediction p and the sum s of the embedding. The impact is ``(1 + 1/C) / K`` times the mean over
    c of row c's sum; the offset of class i is the mean of its sum over the other c.

    Args:
        observation: Needs the weight gradient, the batch size, the model and the inputs' shape.
        inputs: ``"random"`` (standard normal, as normalized images are), ``"zeros"`` or ``"ones"``.
        samples: Number of random dummies.

    Returns:
        Counts that sum to the number of instances.

    Raises:
        ValueError: No dummies of that kind, or none at all.
    """
    seen = probe(observation, dummies(observation, inputs, samples))
    weighted = (seen.probabilities * seen.activity[:, None]).mean(dim=0)
    return _restore(
        observation,
        own=weighted - seen.activity.mean(),
        offset=weighted,
    )


@register(
    "llg-plus",
    title="LLG+",
    needs=(Need.WEIGHT, Need.BATCH_SIZE, Need.PLAIN_LOSS, Need.MODEL, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="non-negative embeddings, and auxiliary data of the client's kind",
    reference=_REFERENCE + ", impact and offset from auxiliary data",
)
def llg_plus(observation: Observation) -> Restoration:
    """LLG with the impact of a sample, and the offset of a class, from auxiliary data.

    As LLG*, where the batch labeled c is made of auxiliary samples of class c.

    Args:
        observation: Needs the weight gradient, the batch size, the model and auxiliary data with
            every class.

    Returns:
        Counts that sum to the number of instances.

    Raises:
        MissingKnowledge: A class has no auxiliary sample.
    """
    auxiliary, classes = auxiliary_of(observation), observation.classes
    seen = probe(observation, auxiliary.inputs)
    sums = torch.cat([seen.probabilities * seen.activity[:, None], seen.activity[:, None]], dim=1)
    means = class_means(sums, auxiliary.labels, classes)
    weighted, activity = means[:, :-1], means[:, -1]
    own = weighted.diagonal()
    return _restore(
        observation,
        own=own - activity,
        offset=(weighted.sum(dim=0) - own) / (classes - 1),
    )


def _restore(
    observation: Observation,
    own: Float[Tensor, " classes"],
    offset: Float[Tensor, " classes"],
) -> Restoration:
    evidence, total = row_sums(observation), instances(observation)
    impact = own.mean() / total * (1 + 1 / observation.classes)
    return emit_labels(evidence, impact, total, offset)
