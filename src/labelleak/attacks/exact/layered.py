"""What the samples that an earlier layer shows say of the batch."""

import torch
from torch import Tensor

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.earlier import Layer, LayerSearch
from labelleak.attacks.exact.findings import Findings, concluded, estimated, weights_add_up
from labelleak.observation import Observation
from labelleak.restoration import Restoration


def known_divisor(observation: Observation) -> float | None:
    """D, by which the loss divides the sum over its samples, where it is known beforehand."""
    if not observation.loss.averages:
        return 1.0
    if observation.loss.class_weights is not None or observation.batch_size is None:
        return None
    return float(observation.batch_size)


def by_layer(observation: Observation, layer: Layer, seed: int, clock: Clock) -> Restoration | None:
    """Restore the samples that the layer before the head shows.

    Args:
        observation: What the server sees.
        layer: That layer.
        seed: Of all guesses.
        clock: When to stop at the latest.

    Returns:
        As `exact` does; None if nothing was found.
    """
    generator = torch.Generator().manual_seed(seed)
    search = LayerSearch(layer, observation.batch_size, known_divisor(observation), generator)
    search.run(clock)
    found = search.found
    if not len(found):
        return None
    divisor = known_divisor(observation)
    if divisor is None:
        divisor = float(found.inverse_weights.median())
        if observation.loss.class_weights is None:
            divisor = float(round(divisor))
    times = (divisor / found.inverse_weights).round().clamp_min(1.0).long()
    total = observation.batch_size
    averaged = observation.loss.averages
    if total is None and search.is_complete and averaged and observation.loss.class_weights is None:
        total = round(divisor)
    assert observation.gradient.bias is not None
    gradient = torch.cat([observation.gradient.weight, observation.gradient.bias[:, None]], dim=1)
    gradient = gradient.double()
    embeddings = layer.embed(found.inputs)

    def rest(number: int) -> Tensor:
        return estimated(observation, gradient - search.errors().T @ embeddings, divisor, number)

    def proven() -> bool:
        agree = weights_add_up(observation, found.labels, times, divisor)
        return agree and search.proves(gradient)

    findings = Findings(
        labels=found.labels,
        times=times,
        sure=search.clear(),
        embeddings=embeddings[:, :-1],
        is_complete=search.is_complete,
        rank=search.rank,
        total=total,
    )
    return concluded(observation, findings, rest=rest, proven=proven)
