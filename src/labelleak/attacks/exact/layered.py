"""What the samples that an earlier layer shows say of the batch."""

from dataclasses import replace

import torch

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.earlier import Layer, LayerSearch
from labelleak.attacks.ilrg import ilrg
from labelleak.observation import HeadGradient, Observation
from labelleak.restoration import Flag, Restoration, project_to_counts

_INTEGER = 0.02


def known_divisor(observation: Observation) -> float | None:
    """D, by which the loss divides the sum over its samples, where it is known beforehand."""
    if observation.reduction == "sum":
        return 1.0
    if observation.class_weights is not None or observation.batch_size is None:
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
        if observation.class_weights is None:
            divisor = float(round(divisor))
    times = (divisor / found.inverse_weights).round().clamp_min(1.0).long()
    sure = search.clear()
    counts = torch.zeros(observation.classes, dtype=torch.int64, device=times.device)
    certain = counts.index_add(0, found.labels, times * sure)
    counts = counts.index_add(0, found.labels, times)
    number, total = int(times.sum()), observation.batch_size
    averaged = observation.reduction == "mean"
    if total is None and search.is_complete and averaged and observation.class_weights is None:
        total = round(divisor)
    hidden = search.rank - len(found)
    invisible = None if total is None else max(0, total - number - hidden)
    flags = [] if search.is_complete else [Flag.INCOMPLETE]
    if invisible is not None:
        invisible += int((times * ~sure).sum())
        if invisible:
            flags.append(Flag.INVISIBLE_SAMPLES)
    base = Restoration(
        attack="exact",
        present=counts > 0,
        embeddings=layer.embed(found.inputs)[:, :-1],
        embedding_labels=found.labels,
        certain=certain,
        invisible=invisible,
        flags=tuple(flags),
    )
    if total is None or number > total:
        return base
    assert observation.gradient.bias is not None
    gradient = torch.cat([observation.gradient.weight, observation.gradient.bias[:, None]], dim=1)
    proven = number == total and _agrees(observation, search, times, divisor)
    proven = proven and search.proves(gradient.double())
    if number < total:
        rest = gradient.double() - search.errors().T @ layer.embed(found.inputs)
        counts = counts + project_to_counts(
            _estimate(observation, rest, total - number), total - number
        )
    return replace(
        base,
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / total,
        certified=proven,
    )


def _agrees(
    observation: Observation, search: LayerSearch, times: torch.Tensor, divisor: float
) -> bool:
    """Whether the weights of the samples add up to what the loss divides by."""
    if observation.reduction != "mean":
        return True
    weight = float((search.layer.class_weights[search.found.labels] * times).sum())
    return abs(weight / divisor - 1.0) < _INTEGER / max(1, int(times.sum()))


def _estimate(observation: Observation, rest: torch.Tensor, number: int) -> torch.Tensor:
    """Counts of the samples that were not found, by iLRG on what is left of the gradient."""
    even = rest.new_full((observation.classes,), number / observation.classes)
    if observation.class_weights is not None or observation.reduction != "mean":
        return even
    assert observation.batch_size is not None
    scaled = rest * (observation.batch_size / number)
    seen = Observation(
        observation.head,
        HeadGradient(scaled[:, :-1], scaled[:, -1]),
        batch_size=number,
    )
    raw = ilrg(seen).raw
    return even if raw is None else raw
