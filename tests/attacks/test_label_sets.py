"""Counts of labels that every sample has a set of, on gradients of known batches by autograd."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import labelleak
from labelleak import Auxiliary, Flag, InvalidObservation, Loss, MissingKnowledge
from labelleak.attacks.multi_label.label_counts import label_counts_are_sure
from labelleak.metrics import counts_of
from labelleak.projection import project_to_box
from labelleak.shares import macro_error
from synthetic import rng

LABELS = 12
WEIGHTS = torch.linspace(0.5, 3.0, LABELS, dtype=torch.float64)
KINDS = [
    Loss("bce"),
    Loss("bce", "sum"),
    Loss("bce", "sample_mean", positive_weights=WEIGHTS),
    Loss("bce", label_weights=WEIGHTS, positive_weights=WEIGHTS.flip(0)),
    Loss("sigmoid_focal", alpha=0.25),
]


def network(seed=0, width=40):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, LABELS)).eval()


def batch(size, seed=0):
    inputs = torch.randn(size, 30, generator=rng(seed))
    chance = torch.linspace(0.06, 0.4, LABELS)
    return inputs, (torch.rand(size, LABELS, generator=rng(seed + 1)) < chance).long()


def observed(model, inputs, targets, loss):
    loss = Loss.of(loss)
    value = loss.value(model(inputs), loss.check_targets(targets, *targets.shape))
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return labelleak.observe(
        model, dict(zip(names, gradients, strict=True)), batch_size=len(inputs), loss=loss
    )


@pytest.mark.parametrize("loss", KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize("size", [24, 60])
def test_counts_of_an_untrained_network_are_right_or_not_sure(loss, size):
    for seed in range(3):
        inputs, targets = batch(size, seed)
        seen = observed(network(seed), inputs, targets, loss)
        found = labelleak.restore(seen, "pooled")
        # Weights that draw a label's mean residual to zero leave little to tell it by.
        off = (found.raw - targets.sum(dim=0)).abs()
        assert bool((off < 5.0 * found.standard_errors + 0.01).all())
        right = torch.equal(found.counts, targets.sum(dim=0))
        assert right or Flag.COUNTS_NOT_SURE in found.flags
        if loss.kind == "bce" and loss.positive_weights is None:
            assert right
            assert not found.unreliable
        assert found.multi_label
        assert found.samples == size
        expected = (found.raw / size).clamp(0.0, 1.0)
        torch.testing.assert_close(found.proportions, expected)


def test_intervals_hold_as_often_as_they_say():
    held = []
    for seed in range(30):
        inputs, targets = batch(80, seed)
        found = labelleak.restore(observed(network(seed), inputs, targets, "bce"), "pooled")
        true, (low, high) = targets.sum(dim=0), found.intervals.T
        held += ((low <= true) & (true <= high)).tolist()
    assert 0.88 <= sum(held) / len(held) <= 0.995


def test_without_a_batch_size_there_are_shares():
    inputs, targets = batch(40)
    seen = observed(network(), inputs, targets, "bce")
    seen = replace(seen, training=replace(seen.training, batch_size=None))
    found = labelleak.restore(seen)
    assert found.counts is None
    expected = targets.double().mean(dim=0)
    torch.testing.assert_close(found.proportions, expected, atol=0.01, rtol=0)
    assert Flag.UNKNOWN_BATCH_SIZE in found.flags


def test_a_trained_network_makes_no_promise_without_auxiliary_data():
    inputs, targets = batch(400, 7)
    model = trained(inputs, targets)
    new, own = batch(40, 99)
    found = labelleak.restore(observed(model, new, own, "bce"), "pooled")
    assert found.standard_errors is None
    assert Flag.COUNTS_NOT_SURE in found.flags


def trained(inputs, targets):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = network().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(
                model(inputs), targets.double().float()
            ).backward()
            optimizer.step()
    return model.eval()


def findings(size, seed):
    """Labels that follow from the inputs, but for some."""
    inputs = torch.randn(size, 30, generator=rng(seed))
    rule = torch.randn(30, LABELS, generator=rng(123)) / 30**0.5
    noise = 0.5 * torch.randn(size, LABELS, generator=rng(seed + 1))
    return inputs, (inputs @ rule + noise > 0.8).long()


def test_auxiliary_data_beat_a_guess_on_a_trained_network():
    model = trained(*findings(600, 3))
    auxiliary = Auxiliary(*findings(600, 50))
    share = auxiliary.labels.double().mean(dim=0)
    errors, guesses, held = [], [], []
    for seed in range(100, 115):
        inputs, targets = findings(48, seed)
        true = targets.sum(dim=0)
        seen = replace(observed(model, inputs, targets, "bce"), auxiliary=auxiliary)
        found = labelleak.restore(seen, "likelihood")
        errors.append(macro_error(found.counts, true, 48))
        guesses.append(macro_error((48 * share).round().long(), true, 48))
        low, high = found.intervals.T
        held += ((low <= true) & (true <= high)).tolist()
    assert sum(errors) < 0.8 * sum(guesses)
    assert 0.88 <= sum(held) / len(held) <= 0.995
    assert labelleak.restore(seen).attack in ("likelihood", "exact")


@pytest.mark.parametrize("loss", [KINDS[0], KINDS[3], KINDS[4]], ids=["bce", "weights", "focal"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_label_sets_of_every_sample_are_proven(loss, size):
    inputs, targets = batch(size, 4)
    found = labelleak.restore(observed(network(2, width=120), inputs, targets, loss))
    assert found.attack == "exact"
    assert found.certified
    assert sorted(found.label_sets.long().tolist()) == sorted(targets.tolist())
    assert torch.equal(found.counts, targets.sum(dim=0))
    assert not found.unreliable
    with pytest.raises(ValueError, match="sets of labels"):
        found.labels()


def test_nothing_is_proven_of_a_gradient_with_noise_or_another_batch_size():
    inputs, targets = batch(4, 4)
    seen = observed(network(2, width=120), inputs, targets, "bce")
    size = float(seen.gradient.weight.std())
    noisy = seen.gradient.weight + 1e-3 * size * torch.randn(LABELS, 120, generator=rng(1))
    for gradient, told in (
        (replace(seen.gradient, weight=noisy), 4),
        (seen.gradient, 3),
        (seen.gradient, 5),
        (replace(seen.gradient, weight=2 * seen.gradient.weight), 4),
    ):
        other = replace(seen, gradient=gradient, training=replace(seen.training, batch_size=told))
        with pytest.raises(MissingKnowledge):
            labelleak.restore(other, "exact")


def test_noise_leaves_no_counts_that_are_sure():
    for seed in range(10):
        inputs, targets = batch(40, seed)
        seen = observed(network(seed), inputs, targets, "bce")
        noise = 0.03 * torch.randn(LABELS, generator=rng(seed)) / LABELS
        other = replace(seen, gradient=replace(seen.gradient, bias=seen.gradient.bias + noise))
        found = labelleak.restore(other)
        assert Flag.COUNTS_NOT_SURE in found.flags or torch.equal(found.counts, targets.sum(dim=0))


def test_a_head_of_zeros_is_proven_whatever_the_data():
    for seed in range(5):
        inputs, targets = batch(50, seed)
        model = nn.Linear(30, LABELS)
        nn.init.zeros_(model.weight)
        for loss in KINDS:
            found = labelleak.restore(observed(model, inputs, targets, loss))
            assert found.certified
            assert torch.equal(found.counts, targets.sum(dim=0))


def test_the_loss_is_named_where_another_was_told():
    inputs, targets = batch(40)
    seen = observed(network(), inputs, targets, "bce")
    found = labelleak.restore(replace(seen, loss=Loss()), "pooled")
    assert Flag.LOOKS_LIKE_SIGMOIDS in found.flags
    assert found.unreliable
    classes = labelleak.capture(network(), inputs, targets.argmax(dim=1))
    found = labelleak.restore(replace(classes, loss=Loss("bce")))
    assert Flag.LOOKS_LIKE_SOFTMAX in found.flags
    assert found.unreliable
    plain = labelleak.restore(classes).flags
    assert not {Flag.LOOKS_LIKE_SIGMOIDS, Flag.LOOKS_LIKE_SOFTMAX} & set(plain)


def test_attacks_that_do_not_hold_are_refused_by_name():
    inputs, targets = batch(20)
    seen = observed(network(), inputs, targets, "bce")
    refused = 0
    for name, attack in labelleak.list_attacks().items():
        if "bce" in attack.losses:
            continue
        refused += 1
        with pytest.raises(MissingKnowledge, match="does not hold for the loss 'bce'"):
            labelleak.restore(seen, name)
    assert refused > 10


def test_masked_targets_cannot_be_counted():
    inputs, targets = batch(20)
    with pytest.raises(MissingKnowledge, match="no attack counts them"):
        labelleak.restore(observed(network(), inputs, targets, Loss("bce", masked=True)))


def test_auxiliary_labels_have_the_shape_of_the_targets():
    inputs, targets = batch(20)
    seen = observed(network(), inputs, targets, "bce")
    with pytest.raises(InvalidObservation, match="targets of shape"):
        replace(seen, auxiliary=Auxiliary(inputs, targets[:, 0]))
    with pytest.raises(InvalidObservation, match="zeros and ones"):
        Auxiliary(inputs, 2 * targets + 1)
    few = Auxiliary(inputs, torch.zeros_like(targets))
    with pytest.raises(MissingKnowledge, match="label 0 needs two auxiliary samples"):
        labelleak.restore(replace(seen, auxiliary=few), "likelihood")


@given(
    values=st.lists(st.floats(-50, 50), min_size=1, max_size=4),
    total=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_the_projection_is_the_nearest_of_all_counts(values, total):
    found = project_to_box(torch.tensor(values, dtype=torch.float64), total).tolist()
    for value, count in zip(values, found, strict=True):
        least = min(abs(value - other) for other in range(total + 1))
        assert 0 <= count <= total
        assert abs(value - count) <= least + 1e-9


def test_counts_outside_of_the_box_are_refused():
    with pytest.raises(ValueError, match="counts cannot be at most -1"):
        project_to_box(torch.zeros(2), -1)
    with pytest.raises(ValueError, match="NaN"):
        project_to_box(torch.tensor([torch.nan]), 1)


def test_counts_of_label_sets():
    sets = torch.tensor([[1, 0], [-1, 1], [1, 1]])
    assert counts_of(sets, 2).tolist() == [2, 2]
    assert counts_of(torch.tensor([[1], [0], [1]]), 2).tolist() == [1, 2]
    with pytest.raises(ValueError, match="a list of integers is needed"):
        counts_of(sets, 3)


def test_counts_are_not_sure_without_errors():
    inputs, targets = batch(20)
    found = labelleak.restore(observed(network(), inputs, targets, "bce"), "pooled")
    assert label_counts_are_sure(found)
    assert not label_counts_are_sure(replace(found, standard_errors=None))
    assert not label_counts_are_sure(replace(found, raw=found.raw + 0.4))


def test_weights_of_labels_that_were_not_told_leave_no_counts_that_are_sure():
    """At predictions near one half a weight of three doubles the counts, which are whole then."""
    doubled = 0
    for seed in range(8):
        inputs, targets = batch(6, seed)
        weights = torch.full((LABELS,), 3.0)
        seen = observed(network(seed), inputs, targets, Loss("bce", positive_weights=weights))
        found = labelleak.restore(replace(seen, loss=Loss("bce")), "pooled")
        doubled += torch.equal(found.counts, (2 * targets.sum(dim=0)).clamp_max(6))
        assert Flag.COUNTS_NOT_SURE in found.flags
    assert doubled


def test_counts_with_a_common_factor_are_sure_only_if_weights_are_told():
    inputs = torch.randn(8, 30, generator=rng(1))
    targets = torch.zeros(8, LABELS, dtype=torch.int64)
    targets[:4, 0] = targets[4:6, 1] = 1
    seen = observed(network(1), inputs, targets, "bce")
    told = Loss("bce", positive_weights=torch.ones(LABELS))
    for loss, unsure in ((Loss("bce"), True), (told, False)):
        found = labelleak.restore(replace(seen, loss=loss), "pooled")
        assert torch.equal(found.counts, targets.sum(dim=0))
        assert (Flag.COUNTS_NOT_SURE in found.flags) is unsure
