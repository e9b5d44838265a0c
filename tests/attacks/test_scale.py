"""The factor that brings a gradient to the scale that was told."""

from dataclasses import replace

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.scale import fitting_scale, scaled
from labelleak.observation import HeadGradient
from labelleak.restoration import Flag
from synthetic import one_embedding, untrained

EVEN = one_embedding(10, 30, 24)
SEEN = EVEN.observe()


def times(observation, factor):
    gradient = observation.gradient
    return replace(
        observation, gradient=HeadGradient(gradient.weight * factor, gradient.bias * factor)
    )


@pytest.mark.parametrize("factor", [1e-2, 0.2, 0.6, 2.0, 24.0, 1024.0, 65536.0])
def test_the_factor_makes_counts_whole(factor):
    """Averaged, clipped, accumulated and summed gradients, and loss scales."""
    seen = times(SEEN, factor)
    found = fitting_scale(seen, restore(seen, "pooled"))
    assert found.is_confirmed
    assert found.factor * factor == pytest.approx(1.0, rel=0.01)
    audited = restore(seen)
    assert torch.equal(audited.counts, EVEN.counts)
    assert Flag.SCALE_DOES_NOT_FIT in audited.flags
    assert (Flag.DEFENSE_SUSPECTED in audited.flags) == (factor < 1.0)


def test_a_gradient_at_its_scale_has_no_factor():
    assert fitting_scale(SEEN, restore(SEEN, "pooled")) is None


@pytest.mark.parametrize("seed", range(8))
def test_with_two_classes_no_factor_is_confirmed(seed):
    """One number is free, and some factor makes it whole always."""
    batch = untrained(2, 64, 16, seed, spread=0.5)
    for factor in (1.0, 0.4, 3.0):
        seen = times(batch.observe(), factor)
        found = fitting_scale(seen, restore(seen, "pooled"))
        assert found is None or not found.is_confirmed
        flags = restore(seen, time_limit=0.5).flags
        assert Flag.SCALE_DOES_NOT_FIT not in flags
        assert Flag.DEFENSE_SUSPECTED not in flags


def test_scaling_keeps_what_belongs_together():
    twice = scaled(SEEN, 2.0)
    assert torch.equal(twice.gradient.weight, 2.0 * SEEN.gradient.weight)
    assert torch.equal(twice.gradient.bias, 2.0 * SEEN.gradient.bias)
    assert twice.gradient.rounding == 2.0 * SEEN.gradient.rounding
