"""Decaf: absent classes from signs, then the update as a mixture of one-class updates."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.cost import check_room
from labelleak.attacks.evidence import instances
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.published.rlu import least_squares_on_simplex
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.virtual.drawing import Drawn, Samples
from labelleak.attacks.virtual.simulation import recipe_of
from labelleak.errors import MissingKnowledge
from labelleak.observation import Auxiliary, Observation
from labelleak.restoration import Restoration


@register(
    "decaf",
    title="Decaf (data distribution decomposition)",
    needs=(
        Need.WEIGHT,
        Need.BATCH_SIZE,
        Need.MODEL,
        Need.AUXILIARY,
        Need.AFTER,
        Need.LEARNING_RATES,
    ),
    uses=(Need.BIAS,),
    gives=(Gives.COUNTS,),
    assumes="auxiliary data of the client's kind, non-negative embeddings, and that the update of "
    "a mixture is the mixture of the classes' updates",
    reference="Dai et al. 2024 (Decaf: Data Distribution Decompose Attack against Federated "
    "Learning, arXiv:2405.15316)",
    models_steps=True,
    models_optimizer=True,
    losses=("cross_entropy", "focal"),
)
def decaf(observation: Observation, *, seed: int = 0) -> Restoration:
    """Take the classes that only fell for absent, and decompose the rest on one-class updates.

    1. The weights of an absent class only fall where embeddings are not negative, as every sample
       lowers them by its prediction. A class none of whose weights rose is absent.
    2. For each other class c the server trains its model on auxiliary samples of c alone. The
       change of the final layer is the base u_c.
    3. The shares are the z, non-negative and with sum 1, for which ``sum_c z_c u_c`` is nearest to
       the client's change of the final layer.

    Only the paper's abstract and summaries of it were at hand. They have these steps, the last
    fully connected layer as what is compared, and the rule of step 1. They do not say how bases are
    trained, nor the distance. Here a base is trained by the client's recipe on as many samples as
    the client has, the auxiliary ones over and over; the bias belongs to the layer; and the
    distance is Euclidean.

    Args:
        observation: Needs the weight gradient, the model before and after, the recipe with its
            batch size and learning rates, and auxiliary data with every class.
        seed: Of the order of samples, and of dropout; anything from 0.

    Returns:
        Real-valued and integer counts.

    Raises:
        MissingKnowledge: There are too many classes, a class has no auxiliary sample, the model is
            not the one before training, the final layer was not trained, or its head is one logit.
        InvalidObservation: The model cannot be trained on the samples.
    """
    if observation.is_one_logit:
        raise MissingKnowledge(
            "attack 'decaf' needs a head of two logits or more: one logit is read as two classes, "
            "which train otherwise"
        )
    check_room(observation, "decaf")
    total, auxiliary = instances(observation), auxiliary_of(observation)
    recipe = recipe_of(observation, None)
    layer = [name for name in recipe.names if name.rpartition(".")[0] == observation.head.name]
    if not layer:
        raise MissingKnowledge("attack 'decaf' needs a final layer that the client trained")

    def of_layer(changes: Mapping[str, Tensor]) -> Float[Tensor, " entries"]:
        return torch.cat([changes[name].double() for name in layer])

    rose = (observation.gradient.weight < 0).any(dim=1).cpu()
    # Some class is there: where no weight rose, signs tell nothing.
    among = (rose if bool(rose.any()) else ~rose).nonzero()[:, 0]
    alone = total * torch.eye(observation.classes, dtype=torch.int64)
    samples = one_class_samples(auxiliary)
    drawn = [Drawn(counts, samples, 0, seed) for counts in alone[among]]
    bases = [of_layer(recipe.shown(recipe.trained(one))) for one in drawn]
    raw = torch.zeros(observation.classes, dtype=torch.float64)
    mixture = torch.stack(bases, dim=1)
    raw[among] = total * least_squares_on_simplex(mixture, of_layer(recipe.changes))
    device = observation.head.weight.device
    return conclude(observation, raw.to(device), total, among=among.to(device))


def one_class_samples(auxiliary: Auxiliary) -> Samples:
    """The auxiliary samples of one class, in their order, over and over."""

    def draw(
        counts: Int[Tensor, " classes"], _pool: int, _generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        own = (auxiliary.labels == int(counts.argmax())).nonzero()[:, 0]
        places = own[torch.arange(int(counts.sum()), device=own.device) % len(own)]
        return auxiliary.inputs[places.to(auxiliary.inputs.device)], auxiliary.labels[places]

    return draw
