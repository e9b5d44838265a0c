"""Losses of the user's, against torch's own functions and formulas written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import labelleak
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.loss import Loss
from labelleak.updates import whole_gradient
from synthetic import rng

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-12}
MARGINS = torch.tensor([0.1, 0.2, 0.3, 0.4])


def numbers(seed, *shape):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def twice(logits, labels):
    """Softmax twice: what a network that ends in a softmax and CrossEntropyLoss minimize."""
    return functional.cross_entropy(logits.softmax(dim=1), labels)


def generalized(logits, labels):
    """Generalized cross-entropy (Zhang and Sabuncu 2018), one number for each sample."""
    own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (1 - own**0.7) / 0.7


def margin(logits, labels):
    """Label-distribution-aware margins (Cao et al. 2019)."""
    moved = functional.one_hot(labels, 4) * MARGINS.to(logits)[labels][:, None]
    return functional.cross_entropy(4.0 * (logits - moved), labels, reduction="sum")


def asymmetric(logits, targets):
    """Asymmetric loss of label sets (Ridnik et al. 2021), one number for each label."""
    wrong = torch.sigmoid(logits)
    easy = -(1 - targets) * wrong**2 * functional.logsigmoid(-logits)
    return easy - targets * functional.logsigmoid(logits)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(list(TIGHT)))
def test_residuals_are_those_of_known_losses(seed, dtype):
    logits = numbers(seed, 6, 4).to(dtype)
    labels = torch.randint(4, (6,), generator=rng(seed))
    sets = torch.randint(2, (6, 4), generator=rng(seed))
    pairs = [
        (Loss.custom(functional.cross_entropy), Loss(), labels),
        (
            Loss.custom(nn.CrossEntropyLoss(reduction="sum"), reduction="sum"),
            Loss(reduction="sum"),
            labels,
        ),
        (
            Loss.custom(functional.binary_cross_entropy_with_logits, targets="label_sets"),
            Loss("bce"),
            sets,
        ),
    ]
    for own, known, targets in pairs:
        checked = own.check_targets(targets, *logits.shape)
        residual = known.residual(logits, checked)
        torch.testing.assert_close(
            own.residual(logits, checked), residual, atol=TIGHT[dtype], rtol=TIGHT[dtype]
        )
        assert own.divisor(checked) == known.divisor(checked)
        torch.testing.assert_close(own.value(logits, checked), known.value(logits, checked))
        assert own.sums_vanish(4) == known.sums_vanish(4)
    zero, one = pairs[2][0].binary_residuals(logits[None])
    expected = pairs[2][1].binary_residuals(logits[None])
    torch.testing.assert_close((zero, one), expected, atol=TIGHT[dtype], rtol=TIGHT[dtype])


@pytest.mark.parametrize(
    ("function", "reduction"), [(twice, "mean"), (generalized, "mean"), (margin, "sum")]
)
def test_the_map_holds_the_residual_of_every_class(function, reduction):
    loss, logits = Loss.custom(function, reduction=reduction), numbers(1, 3, 4)
    found = loss.class_residuals(logits)
    for label in range(4):
        for sample in range(3):
            place = logits[sample : sample + 1].clone().requires_grad_()
            value = function(place, torch.tensor([label])).sum()
            (expected,) = torch.autograd.grad(value, place)
            torch.testing.assert_close(found[sample, label], expected[0])
    assert loss.sums_vanish(4)


def network(outputs, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, outputs)).to(dtype).eval()


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (Loss.custom(twice), 4),
        (Loss.custom(generalized), 4),
        (Loss.custom(margin, reduction="sum"), 4),
        (Loss.custom(asymmetric, targets="label_sets"), 3),
        (Loss.custom(asymmetric, targets="label_sets", reduction="sample_mean"), 3),
        (Loss.custom(asymmetric, targets="label_sets"), 1),
    ],
    ids=["twice", "generalized", "margin", "asymmetric", "sample_mean", "one logit"],
)
def test_a_capture_is_the_gradient_by_autograd(loss, outputs, dtype):
    model, inputs = network(outputs, dtype), numbers(1, 70, 12).to(dtype)
    if loss.is_multi_label:
        targets = torch.randint(2, (70, outputs), generator=rng(2))
        each = asymmetric(model.double()(inputs.double()), targets.double())
        value = each.mean() if loss.reduction == "mean" else each.sum() / 70
    else:
        targets = torch.randint(outputs, (70,), generator=rng(2))
        found = loss.function(model.double()(inputs.double()), targets)
        value = found.mean() if loss.reduction == "mean" else found
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))
    model = model.to(dtype)
    seen = labelleak.capture(model, inputs, targets, loss=loss)
    rows = slice(1, 2) if outputs == 1 else slice(None)
    for name, gradient in (("weight", seen.gradient.weight), ("bias", seen.gradient.bias)):
        wanted = expected[f"2.{name}"]
        scale = max(float(wanted.abs().max()), float(expected["2.weight"].abs().max()))
        assert float((gradient[rows] - wanted).abs().max()) <= TIGHT[dtype] * scale
    pieces = list(zip(inputs.split(9), targets.split(9), strict=True))
    again = labelleak.capture(model, pieces, loss=loss)
    torch.testing.assert_close(again.gradient.weight, seen.gradient.weight)
    whole = whole_gradient(model, iter(pieces), loss=loss)
    torch.testing.assert_close(
        whole["0.weight"].double(), expected["0.weight"], rtol=1e-4, atol=1e-7
    )


def dice(logits, targets):
    chance = logits.sigmoid()
    return 1 - 2 * (chance * targets).sum() / (chance + targets).sum()


WEIGHTS = torch.linspace(0.5, 2.0, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Loss.custom(dice, targets="label_sets"), "is no sum or mean over samples: .* Dice"),
        (
            Loss.custom(lambda z, y: functional.cross_entropy(z, y, WEIGHTS.to(z))),
            "is no sum or mean over samples: .* a divisor of weights",
        ),
        (Loss.custom(margin), "adds up over samples: say reduction='sum'"),
        (Loss.custom(twice, reduction="sum"), "averages over samples: say reduction='mean'"),
        (Loss.custom(lambda z, _: z.square().mean()), "does not depend on the targets"),
        (Loss.custom(lambda z, y: z.argmax(1).float().mean()), "no derivative by the logits"),
        (Loss.custom(lambda z, y: z.softmax(1).mean() * torch.nan), "no finite derivative"),
        (Loss.custom(lambda z, y: float(z.detach().sum())), "returns float for logits of shape"),
        (Loss.custom(lambda z, y: z[:, :1]), r"returns \(4, 1\) for logits of shape \(4, 4\)"),
        (
            Loss.custom(lambda z, y: twice(z + torch.randn_like(z), y)),
            "another one at every call",
        ),
        (Loss.custom(lambda z, y: z[y[None] > 9, 5]), "fails on logits of shape .* and targets of"),
        (
            Loss.custom(lambda z, y: functional.cross_entropy(z, y, WEIGHTS, reduction="none")),
            "expected scalar type .*; it is called with logits in double precision",
        ),
        (
            Loss.custom(lambda z, y: -(y * z.log_softmax(1)).sum(1), targets="label_sets"),
            "does not decide about every label by itself: .* say targets='classes'",
        ),
    ],
    ids=range(13),
)
def test_what_is_no_loss_to_read_is_refused_in_one_line(loss, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        loss.check_classes(4)
    assert "\n" not in str(refused.value)


LATE = torch.ones(9).double()
LATE[8] = 3.0


@pytest.mark.parametrize(
    ("function", "targets", "message"),
    [
        (lambda z, y: functional.cross_entropy(z, y, ignore_index=7), "classes", "no sum or mean"),
        (
            lambda z, y: functional.cross_entropy(z, y, ignore_index=7, reduction="none"),
            "classes",
            "leaves out samples of class 7",
        ),
        (lambda z, y: functional.cross_entropy(z, y, LATE.to(z)), "classes", "no sum or mean"),
        (
            lambda z, y: torch.cat(
                [
                    functional.binary_cross_entropy_with_logits(
                        z[:, ::8], y[:, ::8], reduction="none"
                    ),
                    -y[:, 1:8] * z[:, 1:8].log_softmax(1),
                ],
                dim=1,
            ).sum(1),
            "label_sets",
            "does not decide about every label by itself",
        ),
    ],
    ids=["ignored", "ignored alone", "weights", "coupled"],
)
def test_what_holds_of_the_first_classes_alone_is_refused(function, targets, message):
    loss = Loss.custom(function, targets=targets)
    with pytest.raises(InvalidObservation, match=message):
        loss.check_classes(9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loss.custom(3), "a loss of your own is a function of logits and targets"),
        (lambda: Loss("custom"), "a loss of your own is a function of logits and targets"),
        (lambda: Loss.custom(twice, targets="numbers"), "targets 'numbers': use 'classes' or"),
        (lambda: Loss("bce", function=twice), "function is of 'custom' or 'custom_labels', and"),
        (lambda: Loss.of({"kind": "custom"}), "no file or policy can hold: pass Loss.custom"),
        (lambda: Loss.of({"function": "f"}), "no file or policy can hold: pass Loss.custom"),
        (lambda: Loss.of({"_known": {}}), "'_known' is nothing that is told of a loss"),
        (lambda: Loss(pixels=-1), "pixels -1: it must be at least 0"),
        (lambda: Loss(pixels=1.5), "pixels 1.5: it must be a whole number"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_line(make, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_one_logit_needs_label_sets():
    model, inputs = network(1, torch.float64), numbers(1, 8, 12)
    labels = torch.arange(8) % 2
    with pytest.raises(AmbiguousHead, match="is one logit"):
        labelleak.capture(model, inputs, labels, loss=Loss.custom(twice))


def test_a_derivative_that_is_not_finite_is_told_where_it_is():
    """A logarithm of a softmax underflows where the network is sure."""

    def unstable(logits, labels):
        return functional.nll_loss(logits.softmax(dim=1).log(), labels)

    loss = Loss.custom(unstable)
    loss.check_classes(3)
    with pytest.raises(InvalidObservation, match="use a form that is stable"):
        loss.residual(torch.tensor([[2000.0, 0.0, 0.0]]), torch.tensor([1]))
