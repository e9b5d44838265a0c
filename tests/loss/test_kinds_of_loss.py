"""Every kind of loss against autograd on the loss as its source writes it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from labelleak.errors import InvalidObservation
from labelleak.loss import Loss

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-12}


def numbers(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def label_sets(seed, samples, labels, masked):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1 if masked else 0, 2, (samples, labels), generator=generator)


def agree(found, expected, dtype, scale):
    """Relative to a residual of a sample that is all wrong, of which others are differences."""
    scale = max(scale, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= TIGHT[dtype] * scale


def largest_weight(loss):
    weights = (loss.class_weights, loss.positive_weights, loss.label_weights)
    return math.prod(max(1.0, float(one.max())) for one in weights if one is not None)


def by_autograd(function, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def check(loss, reference, logits, targets, dtype):
    """Residual over divisor, and the value, against a loss that somebody else wrote."""
    value, expected = by_autograd(reference, logits)
    targets = loss.check_targets(targets, *logits.shape)
    divisor = loss.divisor(targets)
    scale = largest_weight(loss) / divisor
    agree(loss.residual(logits, targets) / divisor, expected, dtype, scale)
    found, gradient = by_autograd(lambda z: loss.value(z, targets), logits)
    torch.testing.assert_close(found, value, rtol=10 * TIGHT[dtype], atol=10 * TIGHT[dtype])
    agree(gradient, expected, dtype, scale)


seeds = st.integers(0, 10**6)
dtypes = st.sampled_from([torch.float32, torch.float64])
reductions = st.sampled_from(["mean", "sum", "sample_mean"])
scales = st.sampled_from([0.1, 1.0, 8.0])


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    dtype=dtypes,
    reduction=reductions,
    scale=scales,
    labels=st.integers(1, 5),
    masked=st.booleans(),
    weighted=st.booleans(),
)
def test_bce_is_that_of_torch(seed, dtype, reduction, scale, labels, masked, weighted):
    logits, targets = (
        scale * numbers(seed, 6, labels, dtype=dtype),
        label_sets(seed, 6, labels, masked),
    )
    targets[0] = 1
    options = {}
    if weighted:
        options["positive_weights"] = numbers(seed + 1, labels).exp()
        options["label_weights"] = numbers(seed + 2, labels).exp()
    loss = Loss("bce", reduction, masked=masked, **options)

    def reference(z):
        each = functional.binary_cross_entropy_with_logits(
            z,
            targets.clamp_min(0).to(z),
            options.get("label_weights", torch.ones(labels)).to(z),
            pos_weight=options.get("positive_weights", torch.ones(labels)).to(z),
            reduction="none",
        )
        kept = targets >= 0
        by = {"mean": kept.sum(), "sum": 1, "sample_mean": 6}[reduction]
        return each[kept].sum() / by

    check(loss, reference, logits, targets, dtype)


def test_bce_without_masks_is_the_module_of_torch():
    logits, targets = numbers(0, 6, 4), label_sets(0, 6, 4, False)
    weights = numbers(1, 4).exp()
    for reduction in ("mean", "sum"):
        module = torch.nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=weights)
        loss = Loss("bce", reduction, positive_weights=weights)
        check(loss, lambda z, m=module: m(z, targets.double()), logits, targets, torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    dtype=dtypes,
    reduction=reductions,
    scale=scales,
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    weighted=st.booleans(),
    temperature=st.sampled_from([1.0, 3.0]),
)
def test_focal_loss_is_the_formula(seed, dtype, reduction, scale, gamma, weighted, temperature):
    logits = scale * numbers(seed, 6, 4, dtype=dtype)
    labels = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
    weights = numbers(seed + 1, 4).exp() if weighted else None
    loss = Loss("focal", reduction, gamma=gamma, class_weights=weights, temperature=temperature)

    def reference(z):
        # As FLamby's Isic2019 writes it.
        own = functional.log_softmax(z / temperature, dim=1).gather(1, labels[:, None])[:, 0]
        each = -((1 - own.exp()) ** gamma) * own
        each = each if weights is None else each * weights.to(z)[labels]
        return each.sum() if reduction == "sum" else each.mean()

    if gamma < 1 or scale > 1:  # there 1 - p cancels in the formula as it is written
        logits, dtype = logits.double().clamp(-4, 4), torch.float64
        value, expected = by_autograd(reference, logits)
        torch.testing.assert_close(
            loss.residual(logits, labels) / loss.divisor(labels), expected, rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(loss.value(logits, labels), value, rtol=1e-9, atol=1e-12)
        return
    check(loss, reference, logits, labels, dtype)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    gamma=st.sampled_from([0.0, 1.0, 2.0]),
    alpha=st.sampled_from([None, 0.25, 0.9]),
    reduction=reductions,
    masked=st.booleans(),
)
def test_sigmoid_focal_loss_is_that_of_torchvision(seed, gamma, alpha, reduction, masked):
    logits, targets = numbers(seed, 6, 3), label_sets(seed, 6, 3, masked)
    targets[0] = 1
    loss = Loss("sigmoid_focal", reduction, gamma=gamma, alpha=alpha, masked=masked)

    def reference(z):
        # torchvision.ops.sigmoid_focal_loss
        y = targets.clamp_min(0).to(z)
        p = torch.sigmoid(z)
        each = functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        each = each * (1 - (p * y + (1 - p) * (1 - y))) ** gamma
        if alpha is not None:
            each = each * (alpha * y + (1 - alpha) * (1 - y))
        kept = targets >= 0
        by = {"mean": kept.sum(), "sum": 1, "sample_mean": 6}[reduction]
        return each[kept].sum() / by

    check(loss, reference, logits, targets, torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    dtype=dtypes,
    reduction=reductions,
    smoothing=st.sampled_from([0.0, 0.2]),
    weighted=st.booleans(),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_cross_entropy_with_a_temperature_and_samples_left_out(
    seed, dtype, reduction, smoothing, weighted, temperature
):
    logits = numbers(seed, 7, 4, dtype=dtype)
    labels = torch.randint(4, (7,), generator=torch.Generator().manual_seed(seed))
    labels[2] = -100
    weights = numbers(seed + 1, 4, dtype=dtype).exp() if weighted else None
    loss = Loss(
        "cross_entropy",
        reduction,
        label_smoothing=smoothing,
        class_weights=weights,
        temperature=temperature,
        ignore_index=-100,
    )

    def reference(z):
        summed = reduction if reduction != "sample_mean" else "sum"
        found = functional.cross_entropy(
            z / temperature, labels, weights, label_smoothing=smoothing, reduction=summed
        )
        return found / 6 if reduction == "sample_mean" else found

    check(loss, reference, logits, labels, dtype)
    assert loss.num_samples(labels) == 6


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_focal_residual_is_finite_where_the_network_is_sure(gamma):
    loss = Loss("focal", gamma=gamma)
    logits = torch.tensor([[1000.0, -1000.0, 0.0]]).repeat(2, 1)
    found = loss.residual(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, gamma=st.sampled_from([None, 0.5, 2.0]), weighted=st.booleans())
def test_residuals_of_a_label_are_those_of_its_two_targets(seed, gamma, weighted):
    logits = numbers(seed, 3, 4)
    options = {"positive_weights": numbers(seed, 4).exp()} if weighted else {}
    loss = (
        Loss("bce", **options) if gamma is None else Loss("sigmoid_focal", gamma=gamma, alpha=0.3)
    )
    zero, one = loss.binary_residuals(logits)
    torch.testing.assert_close(zero, loss.residual(logits, torch.zeros(3, 4)))
    torch.testing.assert_close(one, loss.residual(logits, torch.ones(3, 4)))
    assert bool((zero >= 0).all())
    assert bool((one <= 0).all())


@settings(max_examples=30, deadline=None)
@given(seed=seeds, gamma=st.sampled_from([0.0, 0.5, 2.0]), weighted=st.booleans())
def test_weights_of_samples_are_what_their_residual_is_made_of(seed, gamma, weighted):
    weights = numbers(seed, 4).exp() if weighted else None
    loss = Loss("focal", gamma=gamma, class_weights=weights)
    prediction = torch.softmax(numbers(seed, 1, 4), dim=1)
    labels = torch.arange(4)
    found = loss.mistakes(prediction.expand(4, 4), labels)
    expected = loss.sample_weights(prediction.T) * (prediction - torch.eye(4))
    torch.testing.assert_close(found, expected)


def test_what_the_kinds_say_of_themselves():
    assert not Loss("focal").is_plain
    assert not Loss(temperature=2.0).is_plain
    assert Loss("focal").gamma == 2.0
    assert Loss("bce").is_multi_label
    assert not Loss("focal").is_multi_label
    assert Loss("bce").divisor_of_labels(8, 3) == 24
    assert Loss("bce", "sample_mean").divisor_of_labels(8, 3) == 8
    assert Loss("bce", "sum").divisor_of_labels(8, 3) == 1
    assert (
        Loss("cross_entropy", "sample_mean", class_weights=torch.ones(2)).divides_by_weights
        is False
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "bce", "label_smoothing": 0.1}, "label_smoothing is of 'cross_entropy', and"),
        ({"kind": "bce", "class_weights": torch.ones(3)}, "it takes positive_weights, label_w"),
        ({"positive_weights": torch.ones(3)}, "positive_weights is of 'bce', and the loss is"),
        ({"kind": "focal", "alpha": 0.3}, "alpha is of 'sigmoid_focal'"),
        ({"gamma": 2.0}, "gamma is of 'focal' or 'sigmoid_focal', and"),
        ({"kind": "focal", "gamma": -1.0}, "gamma -1.0: it must be at least 0"),
        ({"kind": "sigmoid_focal", "alpha": 1.0}, "alpha 1.0: it must be above 0 and below 1"),
        ({"temperature": 0.0}, "temperature 0.0: it must be positive"),
        ({"temperature": None}, "temperature None: a number is needed"),
        ({"label_smoothing": "a"}, "label_smoothing 'a': a number is needed"),
        ({"kind": "focal", "gamma": "2"}, "gamma '2': a number is needed"),
        ({"temperature": math.inf}, "temperature inf: it must be positive and finite"),
        ({"ignore_index": 1.5}, "ignore_index 1.5: it must be a whole number"),
        ({"kind": "bce", "positive_weights": [1.0]}, "positive_weights is a list: a tensor"),
        ({"kind": "bce", "label_weights": torch.zeros(2)}, "label weights must be positive"),
    ],
)
def test_options_of_another_kind_are_refused_in_one_line(values, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        Loss(**values)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (Loss("bce"), torch.zeros(4), "targets of shape \\(4,\\) for 4 samples and 3 labels"),
        (Loss("bce"), torch.full((4, 3), 0.5), "a target is 0.5: it must be 0 or 1"),
        (Loss("bce"), -torch.ones(4, 3), "a target is -1: it must be 0 or 1 \\(masked=True"),
        (Loss("bce", masked=True), -2 * torch.ones(4, 3), "or -1 where it is left out"),
        (Loss(), torch.zeros(4), "class indices are needed"),
        (Loss(), torch.tensor([0, 1, 3, 0]), "labels run from 0 to 3, and the head has classes 0"),
        (Loss(ignore_index=-100), torch.tensor([0, -1, 0, -100]), "labels run from -1 to 0"),
    ],
)
def test_targets_outside_the_set_are_refused_in_one_line(loss, targets, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        loss.check_targets(targets, 4, 3)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("listed", [["a"], [[1.0], [1.0, 2.0]], [None]])
def test_lists_of_a_file_hold_numbers(listed):
    with pytest.raises(InvalidObservation, match="positive_weights: a list of numbers is needed"):
        Loss.of({"kind": "bce", "positive_weights": listed})


def test_weights_are_as_many_as_the_labels():
    with pytest.raises(InvalidObservation, match="positive weights 3 for 4 labels"):
        Loss("bce", positive_weights=torch.ones(3)).check_classes(4)


def test_one_logit_takes_targets_in_a_row():
    assert Loss("bce").check_targets(torch.tensor([0, 1]), 2, 1).tolist() == [[0.0], [1.0]]
