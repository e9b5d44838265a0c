"""What a server sees of a defended update."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.numerics import root_mean_square
from labelleak.observation import HeadGradient, Observation

Defense = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A function from gradients by parameter name to what is sent in their place."""


def defend(observation: Observation, defense: Defense) -> Observation:
    """What the server sees if the client applies a defense.

    Where the observation holds the whole model's gradients, the defense acts on those, as norms and
    percentiles may be over all of them, and the head's gradient is taken from the result. Otherwise
    it acts on the head's gradient alone.

    Args:
        observation: The undefended update.
        defense: The defense, e.g. ``functools.partial(clip_norm, max_norm=1.0)``.

    Returns:
        The same observation with defended gradients.

    Raises:
        InvalidObservation: The head cannot be found among the whole model's gradients, or the
            defense leaves nothing of the head's gradient.

    Examples:
        >>> import torch
        >>> from functools import partial
        >>> from labelleak import Head, HeadGradient, Observation
        >>> from labelleak.defenses import clip_norm
        >>> seen = Observation(Head(torch.zeros(2, 1)), HeadGradient(torch.tensor([[3.0], [-4.0]])))
        >>> defend(seen, partial(clip_norm, max_norm=1.0)).gradient.weight.tolist()
        [[0.6000000238418579], [-0.800000011920929]]
    """
    prefix = f"{observation.head.name}." if observation.head.name else ""
    weight, bias = f"{prefix}weight", f"{prefix}bias"
    head = {weight: observation.gradient.weight}
    if observation.gradient.bias is not None:
        head[bias] = observation.gradient.bias
    given = head if observation.gradients is None else observation.gradients
    missing = [name for name in head if name not in given]
    if missing:
        raise InvalidObservation(
            f"the whole model's gradients lack {' and '.join(missing)}: give the head its name in "
            "the model (Head(..., name='fc')) or leave the gradients out"
        )
    defended = dict(defense(given))
    # The rounding errors made before the defense remain, scaled as the defense scales.
    before = root_mean_square(observation.gradient.weight)
    shrinkage = min(1.0, root_mean_square(defended[weight]) / before) if before else 1.0
    gradient = HeadGradient(defended[weight], defended[bias] if bias in head else None)
    rounding = max(gradient.rounding, shrinkage * observation.gradient.rounding)
    return replace(
        observation,
        gradient=replace(gradient, rounding=rounding),
        gradients=None if observation.gradients is None else defended,
        after=None,  # it would give the undefended update away
    )
