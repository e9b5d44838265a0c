"""ZLG and ZLG+: mean prediction and mean sum of an embedding from the server's own inputs."""

from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.evidence import row_sums
from labelleak.attacks.inputs import Dummies, auxiliary_of, dummies
from labelleak.attacks.probe import Probe, probe
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Restoration

_REFERENCE = (
    "Geng et al. 2021 (Towards General Deep Leakage in Federated Learning, arXiv:2110.09074)"
)


@register(
    "zlg",
    title="ZLG (zero-shot label restoration)",
    needs=(Need.WEIGHT, Need.PLAIN_LOSS, Need.MODEL, Need.INPUT_SHAPE),
    gives=(Gives.COUNTS,),
    assumes="that all embeddings have about the same sum, far from zero, and that made-up inputs "
    "look like real ones to the network",
    reference=_REFERENCE,
)
def zlg(observation: Observation, *, inputs: Dummies = "random", samples: int = 256) -> Restoration:
    """Solve for the counts with predictions and embeddings of dummy inputs.

    Row j of the weight gradient sums to about ``(p_j - n_j / K) O``, with the mean prediction p and
    the mean sum O of an embedding's entries; hence ``n_j = K (p_j - g_j / O)``.

    Args:
        observation: Needs the weight gradient, the model and the inputs' shape. Without a batch
            size, proportions only.
        inputs: ``"random"`` (standard normal, as normalized images are), ``"zeros"`` or ``"ones"``.
        samples: Number of random dummies.

    Returns:
        Real-valued and integer counts.

    Raises:
        MissingKnowledge: The dummies' embeddings sum to zero.
        ValueError: No dummies of that kind, or none at all.
    """
    return estimate(observation, dummies(observation, inputs, samples))


@register(
    "zlg-plus",
    title="ZLG+",
    needs=(Need.WEIGHT, Need.PLAIN_LOSS, Need.MODEL, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="that all embeddings have about the same sum, far from zero, and auxiliary data of the "
    "client's kind",
    reference=_REFERENCE + ", with auxiliary data",
)
def zlg_plus(observation: Observation) -> Restoration:
    """ZLG with auxiliary data in the place of dummies.

    Args:
        observation: Needs the weight gradient, the model and auxiliary data. Without a batch size,
            proportions only.

    Returns:
        Real-valued and integer counts.

    Raises:
        MissingKnowledge: The auxiliary embeddings sum to zero.
    """
    return estimate(observation, auxiliary_of(observation, every_class=False).inputs)


def estimate(observation: Observation, inputs: Tensor) -> Restoration:
    """Counts from the server's own inputs, shape (samples, ...)."""
    seen = probe(observation, inputs)
    raw = counts_from(observation, *statistics(seen))
    errors = scatter(observation, inputs, seen)
    return conclude(observation, raw, observation.num_instances, errors=errors)


def statistics(seen: Probe) -> tuple[Float[Tensor, " classes"], float]:
    """Mean prediction, and mean sum of an embedding's entries."""
    return seen.probabilities.mean(dim=0), float(seen.activity.mean())


def scatter(
    observation: Observation, inputs: Tensor, seen: Probe
) -> Float[Tensor, " classes"] | None:
    """Standard deviation of the counts that single inputs give.

    It stands for the error of the counts: the client's samples may differ from the server's inputs
    as these differ from each other. Student's quantile allows for few of them.

    Args:
        observation: What the server sees.
        inputs: The server's own, shape (samples, ...).
        seen: What they look like at the head.

    Returns:
        Shape (classes,), in the unit of the counts; None where all inputs are the same, or one
        leaves no trace at the head.
    """
    if bool((inputs == inputs[:1]).all()) or not bool(seen.activity.all()):
        return None
    single = seen.probabilities - row_sums(observation) / seen.activity[:, None]
    few = float(stdtrit(len(inputs) - 1, 0.975) / NORMAL_QUANTILE)
    return few * (observation.num_instances or 1) * single.std(dim=0)


def counts_from(
    observation: Observation, prediction: Float[Tensor, " classes"], activity: float
) -> Float[Tensor, " classes"]:
    """``K (p - g / O)``, or shares where K is not known.

    Raises:
        MissingKnowledge: The embeddings' sum O is zero.
    """
    if activity == 0.0:
        raise MissingKnowledge(
            "the inputs at hand leave no trace at the head (their embeddings sum to zero): take "
            "others"
        )
    return (observation.num_instances or 1) * (prediction - row_sums(observation) / activity)
