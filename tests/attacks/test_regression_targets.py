"""The mean target under a squared error, and the answer under Cox's likelihood."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import labelleak
from command_line import labelleak as command
from labelleak import Flag, InvalidObservation, Loss, MissingKnowledge, mean_targets
from labelleak.audit import audit_observation
from synthetic import rng

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-12}


def network(outputs, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, outputs)).to(dtype).eval()


def gradients_of(model, value):
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample_mean"])
def test_a_capture_is_the_gradient_of_torchs_squared_error(outputs, reduction, dtype):
    model = network(outputs, dtype)
    inputs = torch.randn(70, 20, generator=rng(1), dtype=torch.float64).to(dtype)
    targets = 5.0 + torch.randn(70, outputs, generator=rng(2), dtype=torch.float64)
    exact, loss = model.double(), Loss("mse", reduction)
    by = {"mean": 70 * outputs, "sum": 1, "sample_mean": 70}[reduction]
    value = functional.mse_loss(exact(inputs.double()), targets, reduction="sum") / by
    torch.testing.assert_close(loss.value(exact(inputs.double()), targets), value)
    expected = gradients_of(exact, value)
    seen = labelleak.capture(model.to(dtype), inputs, targets, loss=loss)
    rows = slice(1, 2) if outputs == 1 else slice(None)
    for name, found in (("weight", seen.gradient.weight), ("bias", seen.gradient.bias)):
        wanted = expected[f"2.{name}"]
        scale = float(wanted.abs().max())
        assert float((found[rows] - wanted).abs().max()) <= TIGHT[dtype] * scale


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample_mean"])
def test_the_mean_target_of_an_untrained_network(outputs, reduction):
    model, inputs = network(outputs), torch.rand(60, 20, generator=rng(1))
    targets = 40.0 + 10.0 * torch.randn(60, outputs, generator=rng(2))
    seen = labelleak.capture(model, inputs, targets, loss=Loss("mse", reduction))
    found = mean_targets(seen)
    torch.testing.assert_close(found, targets.mean(dim=0).double(), rtol=0.002, atol=0)
    if outputs == 1:
        row = labelleak.capture(model, inputs, targets[:, 0], loss=Loss("mse", reduction))
        torch.testing.assert_close(mean_targets(row), found)


def test_a_head_of_zeros_gives_the_mean_target_whatever_the_data():
    model = network(2, torch.float64)
    nn.init.zeros_(model[2].weight)
    inputs = 100.0 * torch.randn(30, 20, generator=rng(3), dtype=torch.float64)
    targets = torch.randn(30, 2, generator=rng(4), dtype=torch.float64)
    found = mean_targets(labelleak.capture(model, inputs, targets, loss="mse"))
    torch.testing.assert_close(found, targets.mean(dim=0))


def test_a_squared_error_has_nothing_to_count():
    model, inputs = network(1), torch.rand(9, 20, generator=rng(1))
    seen = labelleak.capture(model, inputs, torch.ones(9), loss="mse")
    with pytest.raises(MissingKnowledge, match=r"no labels to count: mean_targets\(observation\)"):
        labelleak.restore(seen)
    with pytest.raises(MissingKnowledge, match="and the loss is 'cross_entropy'"):
        mean_targets(labelleak.capture(network(3), inputs, torch.ones(9, dtype=torch.int64)))
    with pytest.raises(InvalidObservation, match="one finite number for each is needed"):
        labelleak.capture(model, inputs, torch.ones(9, 2), loss="mse")


def cox(risks, times, events):
    """Cox's negative partial likelihood, of distinct times."""
    order = times.argsort(descending=True)
    risks, events = risks[order], events[order]
    return -((risks - risks.logcumsumexp(dim=0)) * events).sum() / events.sum()


def survival(times_and_events=(1, 2)):
    inputs = torch.randn(40, 20, generator=rng(5))
    times = torch.rand(40, generator=rng(times_and_events[0]))
    return inputs, times, (torch.rand(40, generator=rng(times_and_events[1])) < 0.4).float()


@pytest.mark.parametrize("bias", [True, False])
def test_under_cox_nothing_is_given_away_and_it_is_said(bias):
    model, (inputs, times, events) = network(1), survival()
    if not bias:
        model[2] = nn.Linear(30, 1, bias=False)
    sent = gradients_of(model, cox(model(inputs)[:, 0], times, events))
    seen = labelleak.observe(model, sent, batch_size=40, loss="cox")
    found = labelleak.restore(seen)
    assert found.counts is None
    assert found.flags == (Flag.BIAS_GIVES_NOTHING,)
    assert not found.unreliable
    for true in (None, torch.tensor([int(40 - events.sum()), int(events.sum())])):
        record = audit_observation(seen, true_counts=true)
        assert record.verdict == "audited"
        assert "the bias gives nothing away" in record.reason
        # Nothing was measured of the weights: no limit is known to be kept.
        record = audit_observation(seen, true_counts=true, threshold=0.5)
        assert record.verdict == "inconclusive"


def test_another_loss_is_not_taken_for_coxs():
    model, (inputs, _, events) = network(1), survival()
    value = functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], events)
    seen = labelleak.observe(model, gradients_of(model, value), batch_size=40, loss="cox")
    with pytest.raises(InvalidObservation, match="the bias has a gradient, and under Cox's"):
        labelleak.restore(seen)
    with pytest.raises(MissingKnowledge, match=r"does not hold for the loss 'cox': choose auto$"):
        labelleak.restore(replace(seen), "pooled")
    classes = network(3)
    value = functional.cross_entropy(classes(inputs), torch.arange(40) % 3)
    gradients = gradients_of(classes, value)
    several = labelleak.observe(classes, gradients, batch_size=40)
    with pytest.raises(InvalidObservation, match="the head has 3"):
        labelleak.restore(replace(several, loss=labelleak.Loss("cox")))
    with pytest.raises(InvalidObservation, match="no sum over samples"):
        labelleak.capture(model, inputs, events, loss="cox")


def test_cox_on_the_command_line(tmp_path):
    model, (inputs, times, events) = network(1), survival()
    sent = gradients_of(model, cox(model(inputs)[:, 0], times, events))
    before, update = tmp_path / "model.safetensors", tmp_path / "update.safetensors"
    save_file({name: value.detach().clone() for name, value in model.state_dict().items()}, before)
    save_file(sent, update)
    done = command(
        *("audit", "--before", before, "--update", update, "--batch-size", "40"),
        *("--loss", "cox", "--format", "json"),
    )
    assert (done.status, done.err) == (0, "")
    assert "gives nothing away" in json.loads(done.out)["reason"]
