"""One logit, focal losses and temperatures, which softmax attacks read: known batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import labelleak
from labelleak import Flag, LocalTraining, Loss, MissingKnowledge
from labelleak.attacks.temperature import at_unit_temperature
from labelleak.federated import train_locally
from labelleak.metrics import score
from synthetic import rng, untrained

CLASSES = 8
WEIGHTS = torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)


def linear(outputs, weight=None):
    layer = nn.Linear(20, outputs).double()
    if weight is not None:
        nn.init.constant_(layer.weight, weight)
    return layer


def observed(model, inputs, targets, loss, **knowledge):
    loss = Loss.of(loss)
    logits = model(inputs)
    value = loss.value(logits, loss.check_targets(targets, *logits.shape))
    names = [name for name, _ in model.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))
    return labelleak.observe(model, gradients, batch_size=len(inputs), loss=loss, **knowledge)


LOSSES = [
    Loss("focal"),
    Loss("focal", "sum", gamma=1.0, class_weights=WEIGHTS),
    Loss(temperature=3.0),
    Loss(temperature=0.5, class_weights=WEIGHTS),
    Loss("cross_entropy", "sample_mean", class_weights=WEIGHTS),
    Loss("focal", temperature=2.0),
]


@pytest.mark.parametrize("attack", ["pooled", "ilrg"])
@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
def test_counts_are_right_where_the_loss_is_told(loss, attack):
    batch = untrained(CLASSES, 60, 30, spread=0.02)
    model = batch.model()
    seen = observed(model, batch.embeddings, batch.labels, loss)
    assert torch.equal(labelleak.restore(seen, attack).counts, batch.counts)
    if loss.gamma:
        read = labelleak.restore(replace(seen, loss=Loss(reduction=loss.reduction)), attack)
        assert not torch.allclose(read.raw, batch.counts.double(), atol=0.3)


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
def test_auxiliary_data_are_read_under_the_same_loss(loss):
    batch = untrained(CLASSES, 60, 200, spread=0.5)
    auxiliary = batch.auxiliary(per_class=40)
    seen = observed(batch.model(), batch.embeddings, batch.labels, loss, auxiliary=auxiliary)
    found = labelleak.restore(seen, "likelihood")
    assert score(found, batch.counts).accuracy > 0.9


def test_a_temperature_is_a_head_of_smaller_weights():
    batch = untrained(CLASSES, 20, 30)
    model = batch.model()
    seen = observed(model, batch.embeddings, batch.labels, Loss(temperature=4.0))
    rates = LocalTraining(batch_size=30, learning_rate=0.32)
    plain = at_unit_temperature(replace(seen, training=rates))
    assert plain.loss.is_plain
    assert plain.training.learning_rate == pytest.approx(0.02)
    torch.testing.assert_close(plain.model(batch.embeddings), model(batch.embeddings) / 4.0)
    again = observed(plain.model, batch.embeddings, batch.labels, Loss())
    torch.testing.assert_close(plain.gradient.weight, again.gradient.weight)
    torch.testing.assert_close(plain.gradients["fc.bias"], again.gradients["fc.bias"])
    torch.testing.assert_close(model.fc.weight, batch.weight)
    unchanged = replace(seen, loss=Loss())
    assert at_unit_temperature(unchanged) is unchanged


@pytest.mark.parametrize("weight", [None, 3.0])
@pytest.mark.parametrize("positives", [0, 3, 10, 13, 40])
def test_a_logistic_regression_from_zero_is_proven_whatever_the_data(positives, weight):
    model = nn.Linear(20, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    inputs = 100.0 * torch.randn(40, 20, generator=rng(positives))
    targets = (torch.arange(40) < positives).float()[:, None]
    weights = None if weight is None else torch.tensor([weight])
    seen = observed(model, inputs, targets, Loss("bce", positive_weights=weights))
    found = labelleak.restore(seen)
    assert found.counts.tolist() == [40 - positives, positives]
    # A gradient of exactly zero may be that of a bias that is frozen.
    assert found.certified is bool(seen.gradient.bias.any())


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5])
def test_a_logistic_regression_from_zero_is_proven_by_weights_at_any_rate(rate):
    """Weights divided by a rate that no format holds exactly are as coarse as the weights."""
    model = nn.Linear(20, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    inputs, recipe = torch.randn(40, 20, generator=rng()), LocalTraining(learning_rate=rate)
    targets = (torch.arange(40) < 13).long()
    update = train_locally(model, inputs, targets, recipe, classes=2, loss="bce")
    found = labelleak.restore(update.observe(None))
    assert found.certified
    assert found.counts.tolist() == [27, 13]


def test_a_balanced_gradient_of_one_logit_is_right_and_not_sure():
    model = nn.Linear(20, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    inputs = torch.randn(40, 20, generator=rng())
    seen = observed(model, inputs, (torch.arange(40) < 20).float()[:, None], "bce")
    exact = replace(seen.gradient, bias=torch.zeros(2), zeros_are_sent=True)
    found = labelleak.restore(replace(seen, gradient=exact))
    assert found.counts.tolist() == [20, 20]
    assert not found.certified
    assert Flag.COUNTS_NOT_SURE in found.flags


def test_a_bias_without_a_gradient_of_two_classes_is_not_sure():
    inputs = torch.randn(40, 20, generator=rng(), dtype=torch.float64)
    model = linear(2)
    labels = (torch.arange(40) < 11).long()
    seen = labelleak.capture(model, inputs, labels)
    bare = replace(seen, gradient=replace(seen.gradient, bias=None))
    assert Flag.COUNTS_NOT_SURE in labelleak.restore(bare, "pooled").flags


def test_attacks_for_plain_losses_refuse_the_others_by_name():
    batch = untrained(CLASSES, 20, 30)
    seen = observed(batch.model(), batch.embeddings, batch.labels, "focal")
    for name, attack in labelleak.list_attacks().items():
        if "focal" not in attack.losses:
            with pytest.raises(MissingKnowledge, match=f"'{name}' does not hold for .* 'focal'"):
                labelleak.restore(seen, name)


def test_auto_reads_a_focal_loss():
    batch = untrained(CLASSES, 60, 30, spread=0.02)
    found = labelleak.restore(observed(batch.model(), batch.embeddings, batch.labels, "focal"))
    assert torch.equal(found.counts, batch.counts)
