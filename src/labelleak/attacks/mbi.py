"""MBI: labels emitted from the bias gradient, with an impact that its spread tells."""

from labelleak.attacks.emission import emit_labels
from labelleak.attacks.evidence import bias_gradient, instances
from labelleak.attacks.mean_prediction.damped import moment, pull
from labelleak.attacks.registry import Gives, Need, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration


@register(
    "mbi",
    title="MBI (moment bias impact)",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS),
    gives=(Gives.COUNTS,),
    assumes="a batch drawn at random from classes that are about equally common, and mistakes that "
    "spread over the classes",
    reference="labelleak, documentation of the attack 'mbi'; the emission as in LLG (Wainakh et "
    "al., PETS 2022)",
)
def mbi(observation: Observation) -> Restoration:
    """Emit labels by the bias gradient, where a sample weighs what the entries' spread tells.

    A sample takes m / K off the entry of its class, m being what the network lacks of certainty on
    average, and its mistakes spread over all classes: ``db_i = m (1 / C - n_i / K)``. A batch drawn
    at random has ``sum_i (n_i / K - 1 / C)^2 = (1 - 1 / C) / K`` on average, hence
    ``m^2 = K sum_i db_i^2 / (1 - 1 / C)``. The sum of the negative entries bounds m from below
    (EBI's impact), and one from above (LLBG's).

    Args:
        observation: Needs the bias gradient and the batch size.

    Returns:
        Counts that sum to the number of instances.
    """
    evidence, total = bias_gradient(observation), instances(observation)
    impact = min(1.0, max(pull(observation), moment(observation))) / total
    return emit_labels(evidence, evidence.new_tensor(-impact), total)
