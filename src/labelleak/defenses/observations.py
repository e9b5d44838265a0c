"""What a server sees of a defended update."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
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
    it acts on the head's gradient alone; of one logit, on the one row that is sent.

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
    weight, bias = _names(observation)
    head = _of_the_head(observation)
    given = observation.gradients
    missing = [] if given is None else [name for name in head if name not in given]
    if missing:
        raise InvalidObservation(
            f"the whole model's gradients lack {' and '.join(missing)}: give the head its name in "
            "the model (Head(..., name='fc')) or leave the gradients out"
        )
    defended = _as_read(observation, dict(defense(as_sent(observation))))
    # The rounding errors made before the defense remain, scaled as the defense scales.
    before = observation.gradient.size
    rows = defended[weight].flatten(1)
    shrinkage = min(1.0, root_mean_square(rows) / before) if before else 1.0
    gradient = HeadGradient(
        rows,
        defended[bias] if bias in head else None,
        zeros_are_sent=observation.gradient.zeros_are_sent,
    )
    rounding = max(gradient.rounding, shrinkage * observation.gradient.rounding)
    return replace(
        observation,
        gradient=replace(gradient, rounding=rounding),
        gradients=None if observation.gradients is None else defended,
        after=None,  # it would give the undefended update away
    )


def as_sent(observation: Observation) -> dict[str, Tensor]:
    """The gradients as the client sends them: of all layers where they are known, else the head's.

    One logit is read as two classes, and only the row of the second is sent.
    """
    whole = observation.gradients
    tensors = dict(_of_the_head(observation) if whole is None else whole)
    if not observation.is_one_logit:
        return tensors
    own = _names(observation)
    return {name: value[1:] if name in own else value for name, value in tensors.items()}


def _as_read(observation: Observation, sent: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients as they are read, of those that are sent."""
    if not observation.is_one_logit:
        return sent
    own = _names(observation)
    return {
        name: torch.cat([-value, value]) if name in own else value for name, value in sent.items()
    }


def _names(observation: Observation) -> tuple[str, str]:
    """Names of the head's weight and bias."""
    prefix = f"{observation.head.name}." if observation.head.name else ""
    return f"{prefix}weight", f"{prefix}bias"


def _of_the_head(observation: Observation) -> dict[str, Tensor]:
    gradient = observation.gradient
    both = zip(_names(observation), (gradient.weight, gradient.bias), strict=True)
    return {name: value for name, value in both if value is not None}
