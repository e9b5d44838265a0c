import math

import pytest
import torch

from labelleak.advice.privacy import gaussian_epsilon, noise_for


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_epsilon_is_that_of_the_two_densities(noise_multiplier, delta):
    """The integral of what one density has above exp(epsilon) times the other is delta."""
    epsilon = gaussian_epsilon(noise_multiplier, delta)
    points = torch.linspace(-12, 13, 400_001, dtype=torch.float64) * max(noise_multiplier, 1.0)
    one, other = (
        torch.exp(-((points - middle) / noise_multiplier).square() / 2)
        / (noise_multiplier * math.sqrt(2 * math.pi))
        for middle in (1.0, 0.0)
    )
    left = torch.trapezoid((one - math.exp(epsilon) * other).clamp_min(0), points)
    assert float(left) == pytest.approx(delta, rel=1e-3)


def test_less_noise_is_less_private():
    found = [gaussian_epsilon(z) for z in (1e-4, 1e-2, 1.0, 100.0)]
    assert found == sorted(found, reverse=True)
    assert gaussian_epsilon(1e-7) == math.inf
    # Above any epsilon this noise keeps the promise of a large delta.
    assert gaussian_epsilon(10.0, 0.5) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("epsilon", [1e-2, 1.0, 8.0, 1e4])
def test_noise_for_an_epsilon_has_that_epsilon(epsilon):
    noise = noise_for(epsilon)
    assert gaussian_epsilon(noise) == pytest.approx(epsilon, rel=1e-6)
    assert gaussian_epsilon(0.99 * noise) > epsilon
