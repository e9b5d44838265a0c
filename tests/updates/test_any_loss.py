"""Heads under losses other than plain cross-entropy, against autograd."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import labelleak
from labelleak import LocalTraining, Loss
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.updates import read_observation, whole_gradient
from labelleak.updates.one_logit import loss_of_one, loss_of_two
from synthetic import rng

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-12}
LABELS, SAMPLES = 5, 70
WEIGHTS = torch.linspace(0.5, 3.0, LABELS, dtype=torch.float64)


def network(outputs, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, outputs)).to(dtype).eval()


def batch(dtype=torch.float64):
    inputs = torch.randn(SAMPLES, 12, generator=rng(1), dtype=torch.float64).to(dtype)
    return inputs, torch.randint(2, (SAMPLES, LABELS), generator=rng(2))


def gradients_of(model, value):
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


def assert_near(found, expected, dtype, *, scale=0.0):
    """Relative to the largest entry, here or in the layer: a bias's sum may cancel."""
    scale = max(float(expected.abs().max()), scale)
    assert float((found - expected).abs().max()) <= TIGHT[dtype] * scale


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize(
    "loss",
    [
        Loss("bce"),
        Loss("bce", "sum", positive_weights=WEIGHTS, label_weights=WEIGHTS.flip(0)),
        Loss("bce", masked=True),
        Loss("bce", "sample_mean", masked=True),
        Loss("sigmoid_focal", alpha=0.25),
        Loss("focal", class_weights=WEIGHTS),
        Loss(temperature=3.0, ignore_index=-100, class_weights=WEIGHTS),
    ],
    ids=str,
)
def test_a_capture_is_the_gradient_by_autograd(loss, dtype):
    model, (inputs, targets) = network(LABELS, dtype), batch(dtype)
    if loss.masked:
        targets[::3, 1] = -1
    if not loss.is_multi_label:
        targets = targets @ torch.tensor([1, 1, 1, 1, 0])
        targets[:4] = 4 if loss.ignore_index is None else -100
    checked = loss.check_targets(targets, SAMPLES, LABELS)
    expected = gradients_of(model.double(), loss.value(model(inputs.double()), checked))
    model = model.to(dtype)
    seen = labelleak.capture(model, inputs, targets, loss=loss)
    assert_near(seen.gradient.weight, expected["2.weight"], dtype)
    assert_near(seen.gradient.bias, expected["2.bias"], dtype)
    assert seen.batch_size == SAMPLES - 4 * (loss.ignore_index is not None)
    in_pieces = labelleak.capture(
        model, zip(inputs.split(8), targets.split(8), strict=True), loss=loss
    )
    assert_near(in_pieces.gradient.weight, expected["2.weight"], dtype)
    whole = whole_gradient(model, zip(inputs.split(8), targets.split(8), strict=True), loss=loss)
    assert_near(whole["0.weight"], expected["0.weight"], dtype)


ONE_LOGIT = [
    (Loss("bce"), {}),
    (Loss("bce", "sum"), {"reduction": "sum"}),
    (Loss("bce", positive_weights=torch.tensor([3.0])), {"pos_weight": torch.tensor([3.0])}),
    (Loss("bce", label_weights=torch.tensor([0.5])), {"weight": torch.tensor([0.5])}),
]


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize(("loss", "options"), ONE_LOGIT, ids=str)
def test_one_logit_is_read_as_two_classes(loss, options, dtype):
    model, (inputs, targets) = network(1, dtype), batch(dtype)
    own = targets[:, 0]
    logits = model(inputs)[:, 0]
    value = functional.binary_cross_entropy_with_logits(
        logits,
        own.to(dtype),
        **{k: v.to(dtype) if k != "reduction" else v for k, v in options.items()},
    )
    gradients = gradients_of(model, value)
    seen = labelleak.capture(model, inputs, own, loss=loss)
    told = labelleak.observe(model, gradients, batch_size=SAMPLES, loss=loss)
    for one in (seen, told):
        assert one.classes == 2
        assert_near(one.gradient.weight[1:], gradients["2.weight"], dtype)
        assert_near(one.gradient.weight[0], -gradients["2.weight"][0], dtype)
        scale = float(gradients["2.weight"].abs().max())
        assert_near(one.gradient.bias[1:], gradients["2.bias"], dtype, scale=scale)
        assert torch.equal(one.head.weight[1:], model[2].weight)
        # The two classes' model under the two classes' loss has the same gradient.
        again = gradients_of(one.model, one.loss.value(one.model(inputs), own))
        assert_near(again["0.weight"], gradients["0.weight"], dtype)
        assert_near(again["2.weight"], one.gradient.weight, dtype)
    assert torch.equal(told.gradients["0.weight"], gradients["0.weight"])
    assert told.gradients["2.weight"].shape == (2, 9)
    assert model[2].out_features == 1
    assert told.model[0].weight is model[0].weight


def test_one_logit_may_come_without_its_dimension_or_behind_a_sigmoid():
    class Squeezed(nn.Module):
        def __init__(self, *, sigmoid):
            super().__init__()
            self.body, self.sigmoid = network(1), sigmoid

        def forward(self, inputs):
            logits = self.body(inputs).squeeze(1)
            return torch.sigmoid(logits) if self.sigmoid else logits

    inputs, targets = batch()
    for sigmoid in (False, True):
        seen = labelleak.capture(Squeezed(sigmoid=sigmoid), inputs, targets[:, :1], loss="bce")
        assert seen.head.name == "body.2"


def test_a_sigmoid_focal_loss_of_one_logit_is_the_softmax_one_of_two_classes():
    model, (inputs, targets) = network(1), batch()
    loss = Loss("sigmoid_focal", gamma=2.0, alpha=0.25)
    gradients = gradients_of(model, loss.value(model(inputs), targets[:, :1]))
    seen = labelleak.capture(model, inputs, targets[:, :1], loss=loss)
    assert_near(seen.gradient.weight[1:], gradients["2.weight"], torch.float64)


def test_weights_of_one_logit_before_and_after_a_step(tmp_path):
    model, (inputs, targets) = network(1), batch()
    value = functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets[:, 0].double())
    gradients = gradients_of(model, value)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = {name: before[name] - 0.1 * gradients[name] for name in before}
    recipe = LocalTraining(learning_rate=0.1, batch_size=SAMPLES, steps=1)
    seen = labelleak.observe_update(model, before, after, training=recipe, loss="bce")
    torch.testing.assert_close(seen.gradient.weight[1:], gradients["2.weight"])
    torch.testing.assert_close(seen.gradient.weight[0], -gradients["2.weight"][0])
    # One step moves the difference of two classes twice as far as it moves one logit.
    assert seen.training.learning_rate == 0.05
    assert torch.equal(seen.after["2.weight"][1:], after["2.weight"])
    save_file(before, tmp_path / "before.safetensors")
    save_file(after, tmp_path / "after.safetensors")
    save_file(gradients, tmp_path / "gradients.safetensors")
    files = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    read = read_observation(*files, kind="weights", training=recipe, loss="bce")
    torch.testing.assert_close(read.gradient.weight, seen.gradient.weight)
    read = read_observation(files[0], tmp_path / "gradients.safetensors", loss="bce")
    torch.testing.assert_close(read.gradient.weight, seen.gradient.weight)


def test_without_a_sigmoid_one_logit_is_refused_with_the_loss_to_name():
    model, (inputs, targets) = network(1), batch()
    with pytest.raises(AmbiguousHead, match="which loss='bce' reads"):
        labelleak.capture(model, inputs, targets[:, 0])


def test_a_logistic_regression_is_found():
    model = nn.Linear(12, 1).double()
    inputs, targets = batch()
    assert labelleak.capture(model, inputs, targets[:, 0], loss="bce").head.name == ""


def test_a_gate_of_one_output_is_not_the_head_of_several_labels():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.classifier = nn.Linear(12, 1), nn.Linear(12, LABELS)

        def forward(self, inputs):
            return self.classifier(inputs * torch.sigmoid(self.gate(inputs)))

    inputs, targets = batch(torch.float32)
    seen = labelleak.capture(Gated(), inputs, targets, loss="bce")
    assert seen.head.name == "classifier"


@pytest.mark.usefixtures("unchecked")
def test_targets_that_do_not_fit_are_refused():
    inputs, targets = batch()
    with pytest.raises(InvalidObservation, match="targets of shape"):
        labelleak.capture(network(LABELS), inputs, targets[:, :3], loss="bce")
    with pytest.raises(InvalidObservation, match="positive weights 5 for 1 labels"):
        labelleak.capture(
            network(1), inputs, targets[:, 0], loss=Loss("bce", positive_weights=WEIGHTS)
        )
    with pytest.raises(InvalidObservation, match="every target is left out"):
        labelleak.capture(
            network(LABELS), inputs, -torch.ones_like(targets), loss=Loss("bce", masked=True)
        )


@pytest.mark.parametrize(
    "loss",
    [
        Loss("bce"),
        Loss("bce", "sum", positive_weights=torch.tensor([3.0])),
        Loss("bce", positive_weights=torch.tensor([0.5]), label_weights=torch.tensor([2.0])),
        Loss("bce", masked=True),
        Loss("sigmoid_focal", gamma=1.5),
        Loss("sigmoid_focal", "sample_mean", gamma=2.0, alpha=0.25),
    ],
)
def test_the_loss_of_one_logit_comes_back_from_that_of_two_classes(loss):
    logits = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(9) % 3 == 0).double()[:, None]
    if loss.masked:
        targets[4] = -1.0
    again = loss_of_one(loss_of_two(loss))
    torch.testing.assert_close(again.value(logits, targets), loss.value(logits, targets))
    torch.testing.assert_close(again.residual(logits, targets), loss.residual(logits, targets))
