"""How far an estimate is off, as far as that shows without the truth."""

import math
from dataclasses import replace

import pytest
import torch

from labelleak.attacks import estimates, restore
from labelleak.attacks.estimates import Estimate, clipping_factor, judged
from labelleak.observation import HeadGradient
from synthetic import one_embedding, rng

EVEN = one_embedding(10, 30, 24)
SEEN = EVEN.observe()


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_fractions_without_meaning_are_seldom_taken_for_counts(classes):
    """Uniform fractions of counts that are far from zero: less than one in fifty is let pass."""
    bound = estimates._by_chance(classes)
    fractions = torch.rand(2000, classes, generator=rng()).double()
    distances = (fractions - fractions.round()).square().mean(dim=1).sqrt()
    assert float((distances < bound).double().mean()) < 0.02


def test_an_estimate_far_from_what_it_claims_is_not_believed():
    found = restore(SEEN, "pooled")
    assert judged(SEEN, found).error < 0.05
    shifted = replace(found, raw=found.raw + torch.linspace(-0.5, 0.5, 10).double())
    assert judged(SEEN, shifted).error == math.inf


def test_counts_without_standard_errors_are_believed_where_they_are_whole():
    found = restore(SEEN, "ilrg")
    assert found.standard_errors is None
    assert judged(SEEN, found).error < 1e-6
    shifted = replace(found, raw=found.raw + torch.linspace(-0.5, 0.5, 10).double())
    assert judged(SEEN, shifted).error == math.inf


def test_a_mean_prediction_of_few_classes_is_not_even():
    found = restore(SEEN, "pooled")
    assert judged(SEEN, found).is_even
    # All samples of class 0, and hardly a bias gradient: the network predicts class 0.
    raw = torch.zeros(10).double()
    raw[0] = 24.0
    sure = replace(found, raw=raw, counts=raw.long(), present=raw > 0)
    gradient = HeadGradient(SEEN.gradient.weight, torch.full((10,), 1e-12).double())
    estimate = judged(replace(SEEN, gradient=gradient), sure)
    assert estimate.evenness == pytest.approx(0.1, abs=1e-6)
    assert not estimate.is_even
    assert estimate.error == math.inf


def test_rounding_does_not_rank_estimates():
    """Two that are as good as exact rank the same, whatever rounding makes of their errors."""
    found = restore(SEEN, "pooled")
    one, other = Estimate(found, 3e-9, 2e-9), Estimate(found, 1e-12, 1e-12)
    assert one.rank == other.rank < Estimate(found, 0.1, 0.1).rank < Estimate(found, 0.2, 0.1).rank


@pytest.mark.parametrize("factor", [1.5, 4.0, 20.0])
def test_the_factor_of_clipping_makes_counts_whole(factor):
    gradient = SEEN.gradient
    clipped = replace(SEEN, gradient=HeadGradient(gradient.weight / factor, gradient.bias / factor))
    plain = judged(clipped, restore(clipped, "pooled"))
    assert clipping_factor(clipped, plain) == pytest.approx(factor, rel=0.01)


def test_a_gradient_that_is_not_clipped_has_no_factor():
    plain = judged(SEEN, restore(SEEN, "pooled"))
    assert clipping_factor(SEEN, plain) is None
