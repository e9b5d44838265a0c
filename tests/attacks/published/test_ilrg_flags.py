"""What iLRG flags of its own solution."""

from dataclasses import replace

import pytest
import torch

from labelleak.attacks.published.ilrg import ilrg
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.restoration import Flag
from labelleak.training import LocalTraining
from synthetic import losses, one_embedding, rng, told


def test_nearly_singular_equations_are_flagged():
    """If every class is predicted with certainty, the equations say nothing about the counts."""
    own = torch.eye(8, 16, dtype=torch.float64)
    gradient = HeadGradient(own, torch.ones(8, dtype=torch.float64))
    flags = {
        scale: ilrg(
            Observation(Head(scale * own, torch.zeros(8).double()), gradient, **told(batch_size=24))
        ).flags
        for scale in (1.0, 20.0, 1e6)
    }
    assert Flag.ILL_CONDITIONED not in flags[1.0]
    assert Flag.ILL_CONDITIONED in flags[20.0]
    assert Flag.ILL_CONDITIONED in flags[1e6]


def test_a_total_that_does_not_fit_is_flagged():
    batch = one_embedding(10, 30, 24)
    assert Flag.TOTAL_DOES_NOT_FIT not in ilrg(batch.observe()).flags
    gradient = batch.gradient()
    noise = torch.randn(10, generator=rng(), dtype=torch.float64)
    noisy = HeadGradient(gradient.weight, gradient.bias + 0.2 * noise)
    found = ilrg(batch.observe(noisy))
    assert abs(float(found.raw.clamp(0, 24).sum()) - 24) > 1.2
    assert Flag.TOTAL_DOES_NOT_FIT in found.flags
    assert int(found.counts.sum()) == 24


def with_fractions(fraction, classes=10, features=30, size=24, absent=0):
    """An observation whose restored counts are off by the given fraction of a sample.

    Half of the present classes have too many and half too few, so that the total fits.
    """
    batch = one_embedding(classes, features, size)
    batch.labels = torch.arange(size) % (classes - absent)
    gradient = batch.gradient()
    change = torch.zeros(classes, dtype=torch.float64)
    change[0 : classes - absent : 2], change[1 : classes - absent : 2] = fraction, -fraction
    bias = gradient.bias - change / size
    # The gradient of one mean embedding, so that the quotients stay the same.
    weight = bias[:, None] * batch.embeddings[0]
    return batch.observe(HeadGradient(weight, bias))


@pytest.mark.parametrize(("fraction", "flagged"), [(0.0, 0), (0.1, 0), (0.2, 1), (0.45, 1)])
@pytest.mark.parametrize("absent", [0, 4])
def test_counts_far_from_integers_are_flagged(fraction, flagged, absent):
    observation = with_fractions(fraction, absent=absent)
    found = ilrg(observation)
    assert abs(float((found.raw - found.raw.round()).abs().max()) - fraction) < 1e-6
    assert (Flag.NOT_INTEGRAL in found.flags) == flagged
    assert Flag.TOTAL_DOES_NOT_FIT not in found.flags
    known = replace(observation, present_classes=torch.arange(10 - absent))
    assert (Flag.NOT_INTEGRAL in ilrg(known).flags) == flagged
    assert ilrg(replace(observation, training=LocalTraining())).flags == ()


def test_many_absent_classes_do_not_hide_what_is_wrong_with_the_others():
    observation = with_fractions(0.4, classes=200, size=8, absent=192)
    raw = ilrg(observation).raw
    assert float((raw - raw.round()).abs().mean()) < 0.02
    assert Flag.NOT_INTEGRAL in ilrg(observation).flags


@pytest.mark.parametrize("loss", losses(10), ids=str)
def test_fractions_are_of_instances_whatever_the_loss(loss):
    """Class weights scale the unknowns of the equations, not the counts."""
    batch = one_embedding(10, 30, 24)
    observation = batch.observe_under(loss)
    assert Flag.NOT_INTEGRAL not in ilrg(observation).flags
    bias = observation.gradient.bias
    noise = torch.randn(10, generator=rng(1), dtype=torch.float64)
    bias = bias + 2 / 24 * bias.abs().sum() * (noise - noise.mean())
    spoilt = HeadGradient(bias[:, None] * batch.embeddings[0], bias)
    assert Flag.NOT_INTEGRAL in ilrg(replace(observation, gradient=spoilt)).flags
