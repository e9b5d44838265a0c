"""How far an estimate is off, as far as that shows without the truth."""

import math
from dataclasses import replace

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.certainty import are_whole
from labelleak.attacks.estimates import Estimate, counts_are_sure, judged, outweighing
from labelleak.observation import HeadGradient
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag
from labelleak.training import LocalTraining
from synthetic import Batch, one_embedding

EVEN = one_embedding(10, 30, 24)
SEEN = EVEN.observe()


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


def test_whole_mistakes_of_a_network_that_is_certain_prove_no_counts():
    """Nine samples of one class that are taken for another are seen, and no sample that is not."""
    centers = 10.0 * torch.eye(5).double()
    labels = torch.tensor([0] * 5 + [1] * 10 + [2] * 4 + [3] * 9 + [4] * 12)
    taken = torch.where(labels == 3, 2, labels)
    batch = Batch(centers, torch.zeros(5).double(), centers[taken], labels)
    found = restore(batch.observe(), "ilrg")
    assert are_whole(found)
    assert not torch.equal(found.counts, batch.counts)
    assert judged(batch.observe(), found).error == math.inf
    assert Flag.COUNTS_NOT_SURE in restore(batch.observe(), time_limit=0.2).flags


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


def test_counts_are_sure_where_errors_leave_no_others():
    found = restore(SEEN, "pooled")
    assert counts_are_sure(SEEN, found, is_treated=False)
    wide = replace(found, standard_errors=torch.full_like(found.raw, 0.4))
    assert not counts_are_sure(SEEN, wide, is_treated=False)
    assert not counts_are_sure(SEEN, restore(SEEN, "llbg"), is_treated=False)


def test_one_count_between_whole_ones_makes_all_unsure():
    """Another temperature leaves one there, which the mean distance of all counts hides."""
    found = restore(SEEN, "pooled")
    errors = torch.full_like(found.raw, 0.08)
    near, between = found.counts.double(), found.counts.double()
    near[3] += 0.2
    between[3] += 0.4
    one, other = (replace(found, raw=raw, standard_errors=errors) for raw in (near, between))
    assert counts_are_sure(SEEN, one, is_treated=False)
    assert not counts_are_sure(SEEN, other, is_treated=False)
    # What one may be by chance, all together are not.
    all_near = replace(found, raw=found.counts + 0.2, standard_errors=errors)
    assert not counts_are_sure(SEEN, all_near, is_treated=False)


def test_errors_of_a_treated_gradient_are_told_by_whole_counts_alone():
    """Three classes: 0.1 from whole numbers is chance, whatever the attack's own errors are."""
    batch = one_embedding(3, 30, 24)
    found = restore(batch.observe(), "pooled")
    raw = found.counts + torch.tensor([0.1, -0.1, 0.0]).double()
    near = replace(found, raw=raw, standard_errors=torch.full_like(raw, 0.1))
    assert counts_are_sure(batch.observe(), near, is_treated=False)
    assert not counts_are_sure(batch.observe(), near, is_treated=True)


def told(attack, counts, prediction):
    """An observation, and an attack's estimate without errors under which this is predicted."""
    total = int(counts.sum())
    gradient = HeadGradient(SEEN.gradient.weight, prediction - counts / total)
    observation = replace(SEEN, gradient=gradient, training=LocalTraining(batch_size=total))
    found = replace(
        restore(SEEN, "pooled"),
        attack=attack,
        raw=counts,
        standard_errors=None,
        counts=project_to_counts(counts, total),
    )
    return observation, Estimate(found, math.inf)


EVENLY = torch.full((10,), 0.1).double()
FAVORED = torch.tensor([0.14, 0.06] * 5).double()
UNEVEN = torch.tensor([200, 150, 100, 60, 50, 40, 20, 10, 5, 5]).double()


def test_uneven_counts_of_a_network_that_learns_in_the_local_steps_are_told():
    observation, one = told("pooled", UNEVEN, FAVORED)
    assert outweighing(observation, [one]) is one
    with_errors = replace(one, found=replace(one.found, standard_errors=torch.ones(10).double()))
    assert outweighing(observation, [with_errors]) is None
    observation, other = told("ilrg", UNEVEN, FAVORED)
    assert outweighing(observation, [other]) is None


def test_counts_that_scatter_as_a_favor_would_make_them_are_not():
    """Wrong by all of the favor, even counts look like it."""
    observation, one = told("pooled", 640 * FAVORED, FAVORED)
    assert outweighing(observation, [one]) is None
    much = torch.tensor([0.55, *[0.05] * 9]).double()
    observation, one = told("pooled", UNEVEN, much)
    assert outweighing(observation, [one]) is None


def test_of_a_small_favor_the_smaller_is_nearest_to_the_truth():
    nearly = EVENLY + torch.tensor([0.005, -0.005] * 5).double()
    even = torch.full((10,), 64.0).double()
    observation, one = told("calibrated", even, nearly)
    worse = replace(one, found=replace(one.found, attack="pooled", raw=even + 10 * FAVORED - 1))
    assert outweighing(observation, [worse, one]) is one
    observation, one = told("calibrated", even, FAVORED)
    assert outweighing(observation, [one]) is None
