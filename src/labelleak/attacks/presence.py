"""Which classes are there when nobody told the batch size: shares held against their own errors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.diagnosis import gradient_noise, proven_classes
from labelleak.numerics import implied_rounding, perplexity, root_mean_square
from labelleak.observation import Observation

# A class is there if its share is above so many errors, and the set is not sure if a share is
# between so many. Chosen on the development range of benchmarks/sets.py.
_CLEAR, _UNSURE = 3.0, (2.0, 8.0)
# No smaller share is looked for: errors are taken to be as large as leaves this one just clear.
_SMALLEST = 1.0 / 4096
# Without an error: this part of the share of a class in a batch of equal shares.
_COARSE = 0.25
# Perplexity of the mean prediction, relative to the number of classes, down to which errors hold.
_EVEN = 0.5


def favors_few(prediction: Float[Tensor, " classes"]) -> bool:
    """Whether a mean prediction, shape (classes,), favors less than half of the classes."""
    prediction = prediction.clamp_min(1e-12)
    return perplexity(prediction / prediction.sum()) < _EVEN * len(prediction)


def believable(
    errors: Float[Tensor, " classes"], prediction: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"] | None:
    """Errors that an attack estimates from the scatter of the gradient's rows, if they can be.

    Args:
        errors: As estimated, shape (classes,).
        prediction: The mean prediction of the batch as the attack has it, shape (classes,).

    Returns:
        The errors. None for two classes, whose rows are one up to the sign and do not scatter.
        Infinite where the network favors few classes: the rows of a network that has learned are
        made of its mistakes, and agree on what is wrong.
    """
    if len(errors) < 3:
        return None
    return torch.full_like(errors, torch.inf) if favors_few(prediction) else errors


def told_apart(
    observation: Observation,
    shares: Float[Tensor, " classes"],
    errors: Float[Tensor, " classes"] | None,
    scale: float,
) -> tuple[Bool[Tensor, " classes"], bool]:
    """Classes whose share is clear of its error, and whether no other can be there.

    An error is taken to be no smaller than those of all classes are in the root mean square, than
    the most negative share, which is nothing but error, and than the noise of the gradient.

    Args:
        observation: What the server sees.
        shares: Real-valued shares of the classes, float64, shape (classes,).
        errors: Their standard errors, likewise; None where they are not known.
        scale: How many times larger the gradient is than that of the mean loss.

    Returns:
        bool, shape (classes,), and whether the set is sure: errors are known, every share is either
        far above its error or within it, and no class that is proven has a share within it.
    """
    proven = proven_classes(observation, scale)
    if errors is None:
        return proven | (shares > _COARSE / len(shares)), False
    gradient = observation.gradient
    noise = max(gradient.rounding, gradient_noise(gradient.weight))
    if gradient.bias is not None:
        noise = max(noise, implied_rounding(gradient.bias))
    least = max(
        root_mean_square(errors), -float(shares.min()), noise / scale, _SMALLEST / _UNSURE[1]
    )
    ratios = shares / errors.clamp_min(least)
    clear = ratios > _CLEAR
    unsure = (ratios > _UNSURE[0]) & (ratios < _UNSURE[1]) | proven & ~clear
    sure = bool(clear.any()) and not bool(unsure.any())
    present = clear | proven
    # Some class is there, even if none can be told.
    return (present if bool(present.any()) else shares == shares.max()), sure
