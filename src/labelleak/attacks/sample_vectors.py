"""What each auxiliary sample would add to the gradient, and the same of the client's update."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.evidence import bias_gradient, mean_divisor
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.probe import Probe, contributions, principal_directions, probe
from labelleak.observation import Observation


class SampleVectors(NamedTuple):
    """Vectors of auxiliary samples and of the update; the last class's entries are left out.

    All classes' entries together are zero.

    Attributes:
        vectors: What one sample adds, float64, shape (samples, entries).
        labels: The samples' classes, int64, shape (samples,).
        seen: The mean that the update shows, float64, shape (entries,).
        weights: What a sample of each class adds to the number that a mean loss divides by,
            float64, shape (classes,).
    """

    vectors: Float[Tensor, "samples entries"]
    labels: Int[Tensor, " samples"]
    seen: Float[Tensor, " entries"]
    weights: Float[Tensor, " classes"]


def sample_vectors(observation: Observation, directions: int) -> SampleVectors:
    """What auxiliary samples add to the gradient, for several steps averaged over the way.

    A sample's vector is its residual, and the same times its place along the first principal
    directions of the auxiliary embeddings.

    Args:
        observation: With the bias, its gradient, the model and auxiliary data.
        directions: How many principal directions, from 0.
    """
    auxiliary, gradient = auxiliary_of(observation), observation.gradient
    way = _way(observation)
    first = way[0][1].embeddings
    middle, axes, sizes = principal_directions(first, directions)
    axes = axes.T / (sizes / len(first) ** 0.5)
    labels = auxiliary.labels.to(first.device)
    vectors = sum(
        share
        * contributions(
            observation.loss.residual(seen.logits, labels), (seen.embeddings - middle) @ axes
        )
        for share, seen in way
    )
    assert isinstance(vectors, Tensor)
    bias = bias_gradient(observation)
    seen = bias[:, None]
    if axes.numel():
        divided = gradient.weight.double() / mean_divisor(observation)
        seen = torch.cat([seen, (divided - bias[:, None] * middle) @ axes], dim=1)
    weights = observation.loss.divisor_weights(observation.classes, bias)
    return SampleVectors(vectors, labels, seen[:-1].flatten(), weights)


def _way(observation: Observation) -> list[tuple[float, Probe]]:
    """Auxiliary samples at the models of the way, and the share of the steps each stands for.

    Step s of S is at s/S of the way. The first, the middle and the last of them have the mean of
    all for whatever is quadratic along the way.
    """
    inputs = auxiliary_of(observation).inputs
    start = probe(observation, inputs)
    steps, after, model = observation.local_steps, observation.after, observation.model
    if steps == 1 or after is None or model is None:
        return [(1.0, start)]
    before = model.state_dict()

    def at(place: float) -> Probe:
        state = {
            name: torch.lerp(value, after[name].to(value), place)
            if name in after and value.is_floating_point()
            else value
            for name, value in before.items()
        }
        return probe(observation, inputs, state)

    end = (steps - 1) / steps
    outer = (steps + 1) / (6 * (steps - 1))
    return [(outer, start), (1 - 2 * outer, at(end / 2)), (outer, at(end))]
