"""LLBG, LLBG with auxiliary data, and EBI: labels emitted one by one from the bias gradient."""

from labelleak.attacks.emission import emit_labels
from labelleak.attacks.evidence import bias_gradient, instances
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.probe import class_means, probe
from labelleak.attacks.registry import Gives, Need, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration

_REFERENCE = (
    "Gat and Sharif, AISec 2024 (Harmful Bias: A General Label-Leakage Attack on Federated "
    "Learning from Bias Gradients)"
)


@register(
    "llbg",
    title="LLBG (label leakage from bias gradients)",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="that predictions are about the same for all classes: an untrained network",
    reference=_REFERENCE,
)
def llbg(observation: Observation) -> Restoration:
    """Emit labels by the bias gradient, where a sample weighs ``-1/K``.

    Args:
        observation: Needs the bias gradient and the batch size.

    Returns:
        Counts that sum to the number of instances.
    """
    evidence, total = bias_gradient(observation), instances(observation)
    return emit_labels(evidence, evidence.new_tensor(-1 / total), total)


@register(
    "llbg-aux",
    title="LLBG with auxiliary data",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS, Need.MODEL, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="auxiliary data of the client's kind",
    reference=_REFERENCE + ", LLBG_aux",
)
def llbg_aux(observation: Observation) -> Restoration:
    """Emit labels by the bias gradient, where a sample of class i weighs ``-(1 - v_i) / K``.

    v_i is the mean probability that the network gives class i on auxiliary samples of that class.

    Args:
        observation: Needs the bias gradient, the batch size, the model and auxiliary data with
            every class.

    Returns:
        Counts that sum to the number of instances.

    Raises:
        MissingKnowledge: A class has no auxiliary sample.
    """
    evidence, total = bias_gradient(observation), instances(observation)
    auxiliary = auxiliary_of(observation)
    predictions = probe(observation, auxiliary.inputs).probabilities
    confidence = class_means(predictions, auxiliary.labels, observation.classes).diagonal()
    return emit_labels(evidence, -(1 - confidence) / total, total)


@register(
    "ebi",
    title="EBI (empirical bias impact)",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="that every sample adds about the same to its entry of the bias gradient",
    reference=_REFERENCE + ", empirical bias impact",
)
def ebi(observation: Observation) -> Restoration:
    """Emit labels by the bias gradient, where a sample weighs 1/K of all its negative entries.

    Args:
        observation: Needs the bias gradient and the batch size.

    Returns:
        Counts that sum to the number of instances.
    """
    evidence, total = bias_gradient(observation), instances(observation)
    impact = evidence.clamp_max(0.0).sum() / total
    return emit_labels(evidence, impact, total)
