"""Cox's partial likelihood: the bias has no gradient, and gives nothing away."""

import torch

from labelleak.errors import InvalidObservation
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

# A sum of residuals that vanishes is rounding: so many of its errors, or this share of an entry.
_ROUNDING, _SHARE = 100.0, 1e-4


def nothing_given_away(observation: Observation) -> Restoration:
    """The answer under Cox's partial likelihood: no counts, and the reason.

    The likelihood compares the risks of those who had an event with those of all who were at risk
    then. It does not change when all outputs are shifted, so that the residuals of the samples add
    up to zero whatever the events are.

    Args:
        observation: Of that loss.

    Raises:
        InvalidObservation: The bias has a gradient, so that the loss is another one.
    """
    gradient = observation.gradient
    if not observation.is_one_logit:
        raise InvalidObservation(
            "Cox's partial likelihood is of one output, the risk, and the head has "
            f"{observation.classes}: the loss is another one"
        )
    if gradient.bias is not None:
        found = float(gradient.bias.double().abs().max())
        rounding = max(gradient.rounding, implied_rounding(gradient.weight, gradient.size))
        allowed = max(_ROUNDING * rounding, _SHARE * gradient.size)
        if found > allowed:
            raise InvalidObservation(
                "the bias has a gradient, and under Cox's partial likelihood it has none: the loss "
                "is another one, or noise was added"
            )
    return Restoration(
        present=torch.zeros(observation.classes, dtype=torch.bool),
        flags=(Flag.BIAS_GIVES_NOTHING,),
        attack="none",
    )
