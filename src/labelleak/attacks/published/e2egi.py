"""E2EGI: as LLG, with the impact of a sample from the rows that rise."""

from labelleak.attacks.emission import emit_labels
from labelleak.attacks.evidence import instances, row_sums
from labelleak.attacks.registry import Gives, Need, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration


@register(
    "e2egi",
    title="E2EGI, label step",
    needs=(Need.WEIGHT, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="non-negative embeddings, predictions near 1/C and a class that is absent",
    reference="Li et al., 2023 (E2EGI: End-to-End Gradient Inversion in Federated Learning, IEEE "
    "Journal of Biomedical and Health Informatics), label reconstruction",
)
def e2egi(observation: Observation) -> Restoration:
    """Emit labels by the row sums g, where an absent class tells what one sample weighs.

    An absent class has ``g = mean of p s``, about ``1/C`` of the mean sum s of an embedding, which
    is what a sample takes off its class's row sum: the impact is ``-C / K * max g``. Labels are
    emitted in the two stages of LLG.

    Args:
        observation: Needs the weight gradient and the batch size.

    Returns:
        Counts that sum to the number of instances.
    """
    evidence, total = row_sums(observation), instances(observation)
    impact = -observation.classes / total * evidence.max().clamp_min(0.0)
    return emit_labels(evidence, impact, total)
