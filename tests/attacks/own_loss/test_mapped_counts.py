"""Counts under losses of the user's, on gradients of known batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import labelleak
from labelleak import Auxiliary, Flag, Loss, MissingKnowledge
from labelleak.metrics import counts_of
from synthetic import rng

CLASSES, SIZE = 10, 32


def twice(logits, labels):
    return functional.cross_entropy(logits.softmax(dim=1), labels)


def generalized(logits, labels):
    own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (1 - own**0.7) / 0.7


def margin(logits, labels):
    margins = torch.linspace(0.1, 0.5, logits.shape[1]).to(logits)[labels]
    moved = functional.one_hot(labels, logits.shape[1]) * margins[:, None]
    return functional.cross_entropy(logits - moved, labels, reduction="sum")


def one_against_all(logits, labels):
    """Of class indices, with a sigmoid each: its sums over the classes do not vanish."""
    targets = functional.one_hot(labels, logits.shape[1]).to(logits)
    return functional.binary_cross_entropy_with_logits(logits, targets)


LOSSES = {
    "twice": Loss.custom(twice),
    "generalized": Loss.custom(generalized),
    "margin": Loss.custom(margin, reduction="sum"),
    "one against all": Loss.custom(one_against_all),
    "hinge": Loss.custom(functional.multi_margin_loss),
}


def network(seed=0, outputs=CLASSES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, outputs)).eval()


def batch(seed, size=SIZE):
    inputs = 1.0 + 0.3 * torch.randn(size, 60, generator=rng(seed))
    return inputs, torch.randint(CLASSES, (size,), generator=rng(seed + 500))


def seen_under(loss, seed, **knowledge):
    inputs, labels = batch(seed)
    seen = labelleak.capture(network(seed), inputs, labels, loss=loss)
    return replace(seen, **knowledge), counts_of(labels, CLASSES)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_counts_of_an_untrained_network_are_right_or_not_sure(loss):
    right, held = [], []
    for seed in range(5):
        seen, true = seen_under(loss, seed)
        found = labelleak.restore(seen, "pooled")
        right.append(torch.equal(found.counts, true))
        assert right[-1] or Flag.COUNTS_NOT_SURE in found.flags
        low, high = found.intervals.T
        held += ((low <= true) & (true <= high)).tolist()
    assert sum(right) >= 4
    assert sum(held) / len(held) > 0.88


def test_a_function_is_read_as_the_loss_that_it_is():
    for seed in range(3):
        own, true = seen_under(Loss.custom(functional.cross_entropy), seed)
        found = labelleak.restore(own, "pooled")
        plain = labelleak.restore(replace(own, loss=Loss()), "pooled")
        torch.testing.assert_close(found.raw, plain.raw, atol=0.05, rtol=0)
        assert torch.equal(found.counts, true)


def test_read_as_another_loss_counts_are_wrong_and_not_sure():
    seen, true = seen_under(LOSSES["twice"], 1)
    found = labelleak.restore(replace(seen, loss=Loss()))
    assert not torch.equal(found.counts, true)
    assert Flag.COUNTS_NOT_SURE in found.flags


@pytest.mark.parametrize("rate", [0.1, 0.01, 1e-3])
def test_a_head_of_zeros_is_proven_from_weights(rate):
    inputs, labels = batch(3)
    model = network(3).float()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = Loss.custom(functional.cross_entropy)
    loss.value(model(inputs.float()), labels).backward()
    with torch.no_grad():
        for value in model.parameters():
            value.sub_(rate * value.grad)
    seen = labelleak.observe_update(
        model, before, model.state_dict(), learning_rate=rate, batch_size=len(labels), loss=loss
    )
    found = labelleak.restore(seen)
    true = counts_of(labels, CLASSES)
    assert found.certified
    assert torch.equal(found.counts, true)
    low, high = found.intervals.unbind(dim=1)
    assert bool(((low <= true) & (true <= high)).all())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_a_head_of_zeros_is_proven_whatever_the_data(loss):
    inputs, labels = batch(3)
    model = network(3)
    nn.init.zeros_(model[-1].weight)
    found = labelleak.restore(labelleak.capture(model, 50 * inputs, labels, loss=loss))
    assert found.certified
    assert torch.equal(found.counts, counts_of(labels, CLASSES))


@pytest.mark.parametrize("scale", [1 / 3, 3.0])
@pytest.mark.parametrize(
    "loss", [Loss.custom(functional.cross_entropy), LOSSES["one against all"], LOSSES["hinge"]]
)
def test_whole_counts_at_another_scale_are_not_proven(loss, scale):
    """Shares of 1/3 more or less of some class are whole counts, too."""
    inputs = batch(3, 9)[0]
    model = network(3, 6)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    for labels in (
        [1] * 9,
        [0] * 3 + [2] * 3 + [5] * 3,
        [0] * 6 + [4] * 3,
        [0, 0, 0, 1, 2, 3, 4, 4, 4],
    ):
        own = torch.tensor(labels)
        seen = labelleak.capture(model, inputs, own, loss=loss)
        true = counts_of(own, 6)
        assert labelleak.restore(seen).certified
        gradient = seen.gradient
        scaled = replace(gradient, weight=scale * gradient.weight, bias=scale * gradient.bias)
        found = labelleak.restore(replace(seen, gradient=scaled))
        assert not found.certified or torch.equal(found.counts, true)
        assert torch.equal(found.counts, true) or Flag.COUNTS_NOT_SURE in found.flags


def test_without_a_batch_size_there_are_shares():
    seen, true = seen_under(LOSSES["twice"], 2)
    found = labelleak.restore(replace(seen, training=replace(seen.training, batch_size=None)))
    assert found.counts is None
    torch.testing.assert_close(found.proportions, true.double() / SIZE, atol=0.01, rtol=0)
    assert Flag.UNKNOWN_BATCH_SIZE in found.flags


def test_auxiliary_data_are_read_under_the_same_loss():
    rule = torch.randn(60, 3, generator=rng(9))
    inputs, own = batch(50, 300)[0], batch(4, 200)[0]
    inputs, own = inputs - 1.0, own - 1.0
    auxiliary = Auxiliary(inputs, (inputs @ rule).argmax(dim=1))
    told = (own @ rule).argmax(dim=1)
    seen = labelleak.capture(network(4, 3), own, told, loss=LOSSES["one against all"])
    found = labelleak.restore(replace(seen, auxiliary=auxiliary), "likelihood", directions=0)
    assert int(torch.minimum(found.counts, counts_of(told, 3)).sum()) > 0.9 * 200


def test_other_attacks_are_refused_by_name_and_no_class_is_proven():
    seen, _ = seen_under(LOSSES["margin"], 0)
    for name, attack in labelleak.list_attacks().items():
        if "custom" not in attack.losses:
            with pytest.raises(MissingKnowledge, match="does not hold for the loss 'custom'"):
                labelleak.restore(seen, name)
    bare = replace(seen, gradient=replace(seen.gradient, bias=None))
    with pytest.raises(MissingKnowledge, match="need the final layer's bias"):
        labelleak.restore(bare)


def test_classes_that_the_loss_does_not_tell_apart_are_named():
    def coarse(logits, labels):
        return functional.cross_entropy(logits, labels // 2)

    seen, _ = seen_under(Loss.custom(coarse), 0)
    with pytest.raises(MissingKnowledge, match="does not tell them apart"):
        labelleak.restore(seen)


def test_one_logit_tells_no_errors():
    def squared(logits, targets):
        return (logits.sigmoid() - targets).square()

    inputs, labels = batch(1)
    targets = (labels < 4).long()[:, None]
    seen = labelleak.capture(
        network(1, 1), inputs, targets, loss=Loss.custom(squared, targets="label_sets")
    )
    found = labelleak.restore(seen)
    assert abs(int(found.counts[1]) - int(targets.sum())) <= 1
    assert Flag.COUNTS_NOT_SURE in found.flags
    assert found.intervals is None


def test_label_sets_of_a_function_are_counted_and_proven():
    def asymmetric(logits, targets):
        easy = -(1 - targets) * logits.sigmoid() ** 2 * functional.logsigmoid(-logits)
        return easy - targets * functional.logsigmoid(logits)

    loss = Loss.custom(asymmetric, targets="label_sets")
    inputs, _ = batch(1)
    sets = (torch.rand(SIZE, CLASSES, generator=rng(5)) < 0.3).long()
    found = labelleak.restore(labelleak.capture(network(1), inputs, sets, loss=loss), "pooled")
    assert torch.equal(found.counts, sets.sum(dim=0))
    few = labelleak.capture(network(1), inputs[:3] - 1.0, sets[:3], loss=loss)
    found = labelleak.restore(few)
    assert found.certified
    assert sorted(found.label_sets.long().tolist()) == sorted(sets[:3].tolist())


def test_sums_that_vanish_show_another_loss():
    seen, _ = seen_under(Loss(), 0)
    found = labelleak.restore(replace(seen, loss=LOSSES["one against all"]))
    assert Flag.LOOKS_LIKE_SOFTMAX in found.flags
