from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labelleak
from labelleak.audit import audit_observation
from labelleak.audit.fit import flag_misfit
from labelleak.lab import datasets, networks
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.restoration import UNRELIABLE, Flag, Restoration
from labelleak.training import LocalTraining

TRUTH = torch.tensor([3, 1, 0, 4])


def seen(size=8, **training):
    gradient = HeadGradient(torch.ones(4, 2), torch.tensor([0.25, -0.125, 0.0, -0.125]))
    recipe = LocalTraining(batch_size=size, **training)
    return Observation(Head(torch.zeros(4, 2), torch.zeros(4)), gradient, training=recipe)


def restored(raw, errors=None, counts=TRUTH, **fields):
    return Restoration(
        present=counts > 0,
        counts=counts,
        raw=torch.tensor(raw, dtype=torch.float64),
        standard_errors=None if errors is None else torch.full((4,), errors, dtype=torch.float64),
        attack="pooled",
        **fields,
    )


def is_flagged(found, truth=TRUTH, observation=None):
    return Flag.LABELS_DO_NOT_FIT in flag_misfit(observation or seen(), found, truth).flags


OTHER = torch.tensor([2, 2, 0, 4])


@pytest.mark.parametrize("flags", [(), (Flag.INVISIBLE_SAMPLES,)])
def test_certified_counts_are_those_of_the_batch(flags):
    found = restored([3.0, 1.0, 0.0, 4.0], certified=True, flags=flags)
    assert not is_flagged(found)
    assert is_flagged(found, OTHER)


@pytest.mark.parametrize(
    ("raw", "errors", "flagged"),
    [
        ([3.0, 1.0, 0.0, 4.0], 0.01, False),
        # Many standard errors, but rounding would explain it.
        ([3.49, 0.51, 0.0, 4.0], 0.01, False),
        ([3.51, 0.49, 0.0, 4.0], 0.01, True),
        # A whole sample, but within what the attack says of its errors.
        ([4.0, 0.0, 0.0, 4.0], 0.17, False),
        ([4.0, 0.0, 0.0, 4.0], 0.16, True),
        # Without standard errors an estimate proves nothing.
        ([8.0, 0.0, 0.0, 0.0], None, False),
    ],
)
def test_an_estimate_contradicts_by_half_a_sample_and_six_standard_errors(raw, errors, flagged):
    assert is_flagged(restored(raw, errors)) is flagged


@pytest.mark.parametrize(
    "flag", sorted(UNRELIABLE - {Flag.COUNTS_NOT_SURE}, key=lambda flag: flag.name)
)
def test_an_estimate_that_is_not_to_be_relied_on_contradicts_nothing(flag):
    assert not is_flagged(restored([0.0, 4.0, 4.0, 0.0], 0.01, flags=(flag,)))


def test_labels_of_samples_that_took_no_part_may_differ():
    found = restored([0.0, 4.0, 4.0, 0.0], 0.01, certified=True)
    # One step on 8 of 24 samples.
    part = replace(seen(steps=1), instances=24)
    assert not is_flagged(found, 3 * OTHER, part)
    unknown = seen(None)
    assert not is_flagged(restored([0.0, 0.5, 0.5, 0.0], 0.01), OTHER, unknown)


@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**31),
)
def test_labels_that_an_estimate_has_nearly_right_fit(counts, errors, seed):
    truth = torch.tensor(counts)
    noise = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw = truth.double() + (2 * noise - 1) * max(0.49, 5.9 * errors)
    found = restored(raw.tolist(), errors, truth)
    assert not is_flagged(found, truth, seen(int(truth.sum())))


def test_flags_keep_their_order_and_the_rest_its_values():
    found = restored([3.0, 1.0, 0.0, 4.0], certified=True, flags=(Flag.NO_BIAS,))
    flagged = flag_misfit(seen(), found, OTHER)
    assert list(flagged.flags) == [
        flag for flag in Flag if flag in (Flag.NO_BIAS, Flag.LABELS_DO_NOT_FIT)
    ]
    assert flagged.counts is found.counts
    assert flag_misfit(seen(), found, TRUTH) is found


@pytest.fixture(scope="module")
def site():
    """A site with eight digits that draws them with replacement, one class far more often."""
    digits = datasets.load("mnist-sample")
    inputs, labels = digits.batch(torch.arange(8))
    model = networks.build("fcn-3", classes=10, image_shape=digits.image_shape, seed=0).eval()
    return model, inputs, labels


@pytest.mark.parametrize("seed", range(5))
def test_weighted_sampling_is_seen_by_the_labels(site, seed):
    model, inputs, labels = site
    weights = torch.where(labels == labels[0], 60.0, 1.0)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weights, 8, replacement=True, generator=generator)
    observation = labelleak.capture(model, inputs[drawn], labels[drawn])
    truth, own = (torch.bincount(one, minlength=10) for one in (labels[drawn], labels))
    record = audit_observation(observation, true_counts=own, threshold=0.5)
    assert record.certified
    assert record.counts == truth.tolist() != own.tolist()
    assert [flag["name"] for flag in record.flags] == ["labels_do_not_fit"]
    assert record.verdict == "over threshold"
    # By the labels that were drawn there is nothing to flag.
    record = audit_observation(observation, true_counts=truth, threshold=0.5)
    assert (record.flags, record.score["exact"]) == ([], True)


@pytest.mark.parametrize("seed", range(5))
def test_another_partition_is_seen_by_an_estimate_alone(site, seed):
    model, _, _ = site
    digits = datasets.load("mnist-sample")
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    mine, others = order[:64], order[64:128]
    inputs, labels = digits.batch(mine)
    observation = labelleak.capture(model, inputs, labels)
    truth, own = (torch.bincount(digits.labels[part], minlength=10) for part in (mine, others))
    record = audit_observation(observation, "pooled", true_counts=own, threshold=1.0)
    assert not record.certified
    assert "labels_do_not_fit" in [flag["name"] for flag in record.flags]
    assert (record.verdict, record.exit_status) == ("inconclusive", 3)
    assert "contradict the labels" in record.reason
    record = audit_observation(observation, "pooled", true_counts=truth)
    assert "labels_do_not_fit" not in [flag["name"] for flag in record.flags]
