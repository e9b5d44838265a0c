import math

import pytest
import torch
from torch.nn import functional

from labelleak.errors import InvalidObservation
from labelleak.loss import Loss
from synthetic import losses, rng

CLASSES, SAMPLES = 5, 7


def told(options):
    return Loss(
        reduction=options["reduction"],
        label_smoothing=options["label_smoothing"],
        class_weights=options["weight"],
    )


def batch():
    logits = torch.randn(SAMPLES, CLASSES, generator=rng(), dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(CLASSES, (SAMPLES,), generator=rng(1))


@pytest.mark.parametrize("options", losses(CLASSES), ids=str)
def test_residual_and_divisor_are_the_gradient_by_autograd(options):
    logits, labels = batch()
    (expected,) = torch.autograd.grad(functional.cross_entropy(logits, labels, **options), logits)
    loss = told(options)
    found = loss.residual(logits.detach(), labels) / loss.divisor(labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(SAMPLES).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", losses(CLASSES), ids=str)
def test_the_value_is_the_loss(options):
    logits, labels = batch()
    expected = functional.cross_entropy(logits, labels, **options)
    torch.testing.assert_close(told(options).value(logits, labels), expected)


@pytest.mark.parametrize("options", losses(CLASSES), ids=str)
def test_weights_of_the_divisor_add_up_to_it(options):
    loss, (logits, labels) = told(options), batch()
    weights = loss.divisor_weights(CLASSES, logits)
    expected = loss.divisor(labels) if loss.averages else SAMPLES
    assert float(weights[labels].sum()) == pytest.approx(expected)


def test_targets_are_one_hot_for_the_plain_loss():
    labels = torch.arange(CLASSES)
    targets = Loss().targets(labels, CLASSES, torch.zeros(1))
    assert torch.equal(targets, torch.eye(CLASSES))
    smoothed = Loss(label_smoothing=0.5).targets(labels, CLASSES, torch.zeros(1))
    torch.testing.assert_close(smoothed.sum(dim=1), torch.ones(CLASSES))
    assert float(smoothed[0, 0]) == pytest.approx(0.6)


def test_what_a_loss_says_of_itself():
    assert Loss().is_plain
    assert not Loss(label_smoothing=0.1).is_plain
    assert not Loss(class_weights=torch.ones(3)).is_plain
    assert (Loss().scale(8), Loss(reduction="sum").scale(8)) == (1, 8)
    assert Loss(reduction="sum").scale(None) == 1
    loss = Loss(reduction="sum")
    assert Loss.of(loss) is loss
    assert Loss.of("cross_entropy").averages


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "hinge"}, "loss 'hinge' cannot be read: use 'cross_entropy'"),
        ({"reduction": "none"}, "reduction 'none': use 'mean' or 'sum'"),
        *(
            ({"label_smoothing": value}, "label smoothing .*: it must be at least 0 and below 1")
            for value in (1.0, -0.1, math.nan)
        ),
        ({"class_weights": torch.ones(4, 1)}, "class weights 4x1: one weight per class"),
        ({"class_weights": [1.0] * 4}, "class_weights is a list: a tensor is needed"),
        *(
            ({"class_weights": torch.tensor([1.0, value])}, "must be positive and finite")
            for value in (0.0, -1.0, math.nan, math.inf)
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        Loss(**values)
    assert "\n" not in str(refused.value)


def test_class_weights_are_as_many_as_the_classes():
    with pytest.raises(InvalidObservation, match="class weights 3 for 4 classes"):
        Loss(class_weights=torch.ones(3)).check_classes(4)
    Loss(class_weights=torch.ones(4)).check_classes(4)
