"""Epsilon of noise: the exact account of one release by the Gaussian mechanism."""

import math
from collections.abc import Callable

DELTA = 1e-5
"""The probability with which epsilon may fail."""

_MOST = 1e12
_HALVINGS = 200


def gaussian_epsilon(noise_multiplier: float, delta: float = DELTA) -> float:
    """Epsilon of one release of a vector of bounded length with Gaussian noise.

    The least epsilon for which ``Phi(1/2z - epsilon z) - exp(epsilon) Phi(-1/2z - epsilon z)`` is
    at most delta, with z the standard deviation of the noise relative to the length.

    Args:
        noise_multiplier: z, positive.
        delta: Between 0 and 1.

    Returns:
        Epsilon, at least 0; infinite where it is beyond 1e12.

    References:
        Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018
        (arXiv:1805.06530), theorem 8.

    Examples:
        >>> round(gaussian_epsilon(3.730632), 3)
        1.0
    """
    if _delta_of(_MOST, noise_multiplier) > delta:
        return math.inf
    return _least(lambda epsilon: _delta_of(epsilon, noise_multiplier) <= delta)


def noise_for(epsilon: float, delta: float = DELTA) -> float:
    """The least noise with which one release has an epsilon.

    Args:
        epsilon: Positive.
        delta: Between 0 and 1.

    Returns:
        The standard deviation of the noise relative to the length of the vector, positive.

    References:
        As of `gaussian_epsilon`, the inverse of which this is.

    Examples:
        >>> round(noise_for(1.0), 3)
        3.731
    """
    return _least(lambda multiplier: _delta_of(epsilon, multiplier) <= delta)


def _least(is_enough: Callable[[float], bool]) -> float:
    """The least positive number that is enough, where every larger one is."""
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _delta_of(epsilon: float, noise_multiplier: float) -> float:
    from scipy.special import log_ndtr

    half, shift = 0.5 / noise_multiplier, epsilon * noise_multiplier
    first = float(log_ndtr(half - shift))
    second = epsilon + float(log_ndtr(-half - shift))
    return math.exp(first) - math.exp(min(second, first))
