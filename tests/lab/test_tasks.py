"""Losses and targets of experiments: what is drawn, what is trained, what is scored."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from experiments import experiment, observations
from labelleak.lab.datasets import draw, load
from labelleak.lab.datasets.dataset import Dataset
from labelleak.lab.definition import Batch, Experiment, Network, Training
from labelleak.lab.experiment_grid import grid_study, read_grid
from labelleak.lab.keys import hash_of_definition
from labelleak.lab.metric_catalog import metrics_of
from labelleak.lab.pretraining import initial_network, load_network, snapshot_path, train
from labelleak.lab.seeds import derive_seed
from labelleak.lab.summary import summarize
from labelleak.lab.tasks import Local, LossSetting, Targets, relabeled, shares_of_findings
from labelleak.lab.trial import run_trial

BCE = LossSetting(kind="bce")
WEIGHTED = LossSetting(kind="bce", positive_weights=(3.0,) * 14)
FINDINGS = Targets(findings=14)
FCN = Network(name="fcn-2")


@pytest.fixture(scope="module")
def digits():
    return load("mnist-sample")


def test_findings_are_as_frequent_as_told_and_depend_on_the_class(digits):
    shares = shares_of_findings(FINDINGS, digits.classes)
    expected = torch.linspace(0.06, 0.25, 14, dtype=torch.float64)
    torch.testing.assert_close(shares.mean(0), expected)
    assert bool(((shares == 0) | (shares >= 0.3)).all())
    sets = relabeled(digits, FINDINGS).targets
    for label in (0, 13):
        for digit in range(10):
            found = sets[digits.labels == digit, label].double().mean()
            assert found == pytest.approx(float(shares[digit, label]), abs=0.1)
    assert torch.equal(relabeled(digits, FINDINGS).targets, sets)
    other = relabeled(digits, Targets(findings=14, seed=1)).targets
    assert not torch.equal(other, sets)


def test_numbers_have_findings_as_images_have():
    labels = torch.arange(40) % 4
    plain = Dataset("numbers", torch.rand(40, 5), labels, 4, None, (), ())
    changed = relabeled(plain, Targets(findings=3))
    inputs, targets = changed.batch(torch.arange(7))
    assert torch.equal(inputs, plain.images[:7])
    assert torch.equal(targets, changed.targets[:7])


def test_some_targets_are_left_out(digits):
    sets = relabeled(digits, Targets(findings=5, left_out=0.2)).targets
    assert float((sets == -1).double().mean()) == pytest.approx(0.2, abs=0.01)
    kept = sets != -1
    assert torch.equal(sets[kept], relabeled(digits, Targets(findings=5)).targets[kept])


def test_one_logit_tells_some_classes_from_the_others(digits):
    changed = relabeled(digits, Targets(positive=(1, 7)))
    assert torch.equal(changed.labels == 1, (digits.labels == 1) | (digits.labels == 7))
    assert (changed.classes, changed.outputs, changed.counted) == (2, 1, 2)
    for positive in ((), tuple(range(10)), (10,)):
        with pytest.raises(ValueError, match="positive"):
            relabeled(digits, Targets(positive=positive))


CASES = {
    "findings": {
        "loss": LossSetting(kind="bce", positive_weights=(3.0,) * 14),
        "targets": FINDINGS,
    },
    "one logit": {"loss": LossSetting(kind="sigmoid_focal"), "targets": Targets(positive=(3,))},
    "focal": {"loss": LossSetting(kind="focal", class_weights=(1.0,) * 5 + (2.0,) * 5)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_the_loss_and_its_counts_are_restored(digits, case):
    e = experiment(network=FCN, attacks=("pooled",), batch=Batch(size=16), **CASES[case])
    (seen,) = observations(e)
    record = run_trial(e, 0)
    assert record["attacks"]["pooled"]["counts"]["accuracy"] > 0.9
    data = digits if e.targets is None else relabeled(digits, e.targets)
    assert record["classes"] == data.counted
    # The same batch by its seed, and autograd's gradient of the loss itself.
    inputs, targets = data.batch(draw("random", data.labels, 16, derive_seed(0, 0, "batch")))
    model = initial_network(FCN, data).eval()
    value = e.client_loss.value(model(inputs), targets)
    expected = torch.autograd.grad(value, list(model.parameters()))[-2]
    found = seen.gradient.weight[1:] if data.one_logit else seen.gradient.weight
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-6)
    if e.targets is FINDINGS:
        counts = (targets == 1).sum(0)
        error = record["attacks"]["pooled"]["macro_error"]
        assert error <= (1 - record["attacks"]["pooled"]["counts"]["lnacc"]) * 16
        assert int(counts.max()) < 16


def test_a_network_learns_the_targets_by_the_loss(digits):
    data = relabeled(digits, FINDINGS)
    stage = Training(unit="iterations", steps=60, total=60, batch_size=64)
    train(FCN, [stage], data, BCE)
    inputs, sets = data.batch(torch.arange(500))
    value = nn.functional.binary_cross_entropy_with_logits
    with torch.no_grad():
        before, after = (
            value(model(inputs), sets.float())
            for model in (initial_network(FCN, data), load_network(FCN, stage, data, BCE))
        )
    assert after < 0.7 * before
    others = [
        snapshot_path(FCN, stage, data, loss)
        for loss in (None, BCE, LossSetting(kind="sigmoid_focal"))
    ]
    assert len(set(others)) == 3


def test_local_steps_of_any_optimizer_follow_the_loss():
    local = Local(optimizer="adam", steps=4, epochs=2, learning_rate=1e-3)
    e = experiment(
        network=FCN,
        attacks=("pooled",),
        batch=Batch(size=8),
        loss=BCE,
        targets=FINDINGS,
        local=local,
    )
    (seen,) = observations(e)
    assert (seen.training.optimizer, seen.local_steps, seen.num_instances) == ("adam", 4, 16)
    assert seen.loss.kind == "bce"


def test_auxiliary_samples_have_the_same_targets():
    e = experiment(
        network=FCN, attacks=("likelihood",), loss=BCE, targets=FINDINGS, auxiliary_per_class=4
    )
    (seen,) = observations(e)
    assert seen.auxiliary.labels.shape == (40, 14)


def test_a_summary_says_the_task_and_scores_label_sets():
    e = experiment(network=FCN, attacks=("pooled",), loss=BCE, targets=FINDINGS, trials=2)
    assert "pooled.macro_error" in metrics_of([e])
    summary = summarize(grid_study([e], "a", "A"), [run_trial(e, n) for n in range(2)])
    (row,) = summary["rows"]
    assert row["task"] == "bce, 14 labels"
    assert 0 <= row["metrics"]["pooled.macro_error"]["ours"] < 0.1
    assert "pooled.macro_error" not in metrics_of([experiment()])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": {"kind": "bce"}}, "needs targets"),
        ({"targets": {"findings": 5}}, "loss with a sigmoid"),
        ({"loss": {"kind": "focal"}, "targets": {"findings": 5}}, "loss with a sigmoid"),
        ({"loss": {"kind": "bce", "gamma": 2}, "targets": {"findings": 5}}, "gamma is of"),
        ({"loss": {"kind": "bce"}, "targets": {}}, "either positive"),
        ({"loss": {"kind": "bce"}, "targets": {"findings": 5, "positive": [1]}}, "either positive"),
        ({"loss": {"kind": "bce"}, "targets": {"findings": 5, "left_out": 0.1}}, "masked = true"),
        ({"loss": {"kind": "bce"}, "targets": {"positive": [1], "left_out": 0.1}}, "findings"),
        ({"loss": {"kind": "focal"}, "measures": ["cossim"]}, "plain cross-entropy"),
        (
            {"loss": {"kind": "bce"}, "targets": {"findings": 5}, "baselines": ["uniform"]},
            "common sum",
        ),
        ({"local": {"optimizer": "adam", "steps": 2, "learning_rate": 1, "momentum": 0.9}}, "sgd"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    given = {"name": "a", "data": "mnist-sample", "network": {"name": "fcn-2"}}
    given |= {"batch": {"size": 8}, "attacks": ["ilrg"], "trials": 1}
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate(given | fields)


def test_the_example_of_tasks_runs():
    grid = Path(__file__).parents[2] / "examples" / "medical.toml"
    for e in read_grid(grid):
        outcome = run_trial(e, 0)["attacks"]["auto"]
        assert outcome["error"] is None
        assert outcome["counts"]["accuracy"] > (0.9 if e.local is None else -1.0)


def test_experiments_of_before_keep_their_records():
    """The hash of a definition as it was before there were losses, optimizers and rounds."""
    plain = experiment(local=Local(steps=2, learning_rate=0.1))
    content = plain.model_dump(mode="json", exclude={"name", "trials", "loss", "targets"})
    for name in ("optimizer", "round", "clients"):
        del content["local"][name]
    assert plain.definition_key(0) == hash_of_definition(content, 0)
    adam = experiment(local=Local(optimizer="adam", steps=2, learning_rate=0.1))
    assert adam.definition_key(0) != plain.definition_key(0)
    assert experiment(loss=LossSetting(kind="focal")).definition_key(
        0
    ) != experiment().definition_key(0)
