from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labelleak import MissingKnowledge
from labelleak.federated import Auditor, Occasion, Policy, read_rounds, train_locally
from labelleak.training import LocalTraining

CLASSES = 5
OCCASION = Occasion(1, "a")
RATE = 0.1


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            OrderedDict(
                body=nn.Linear(6, 16),
                norm=nn.BatchNorm1d(16),
                act=nn.ReLU(),
                fc=nn.Linear(16, CLASSES),
            )
        )


@pytest.fixture
def auditor(tmp_path):
    def make(action="warn", **options):
        policy = {key: options.pop(key) for key in list(options) if key in Policy().as_dict()}
        policy = {"attack": "ilrg", **policy}
        return Auditor(Policy(action=action, records=str(tmp_path / "r"), **policy), **options)

    return make


def update(model, samples=8, spread=0.02, **options):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    # Inputs that differ little: iLRG is right about all counts then.
    inputs = (1 + spread * torch.randn(samples, 6, generator=generator)).to(model.fc.weight)
    training = LocalTraining(**{"learning_rate": RATE} | options)
    return train_locally(model.eval(), inputs, labels, training, classes=CLASSES)


def training_of(found):
    """What a server is told: one rate, the batch size, the epochs."""
    return replace(found.training, learning_rate=RATE, steps=None)


def audit(auditor, found, after=None, *, occasion=OCCASION, **options):
    known = {"instances": int(found.true_counts.sum()), "true_counts": found.true_counts}
    known |= options
    training = known.pop("training", training_of(found))
    before = known.pop("before", found.before)
    after = found.after if after is None else after
    return auditor.audit_update(before, after, training, occasion, **known)


def test_the_labels_of_one_step_are_found_and_written_down(model, auditor, tmp_path):
    found = update(model)
    occasion = Occasion(1, "a", label="before", framework="flower", epsilon=3.0)
    decision = audit(auditor(), found, occasion=occasion)
    assert decision.record.verdict == "over"
    assert decision.record.action == "warned"
    assert decision.send
    (written,) = read_rounds(tmp_path / "r")
    assert written == decision.record.as_dict()
    assert written["audit"]["counts"] == found.true_counts.tolist()
    assert written["audit"]["head"] == "fc"
    assert (written["label"], written["framework"], written["epsilon"]) == ("before", "flower", 3.0)


def test_a_gradient_instead_of_weights(model, auditor):
    found = update(model)
    gradients = {
        name: (value - found.after[name]) / RATE
        for name, value in found.before.items()
        if value.is_floating_point() and "running" not in name
    }
    decision = auditor().audit_gradients(
        found.before, gradients, LocalTraining(), OCCASION, true_counts=found.true_counts
    )
    assert decision.record.audit["score"]["exact"]
    assert decision.record.verdict == "over"


def test_refused_above_the_limit_and_sent_at_it(model, auditor):
    found = update(model)
    above = audit(auditor("refuse"), found)
    assert (above.record.action, above.send) == ("refused", False)
    assert "restored" in above.reason
    at = audit(auditor("refuse", threshold=1.0), found)
    assert (at.record.action, at.send, at.record.verdict) == ("sent", True, "within")


@pytest.mark.parametrize(("action", "taken"), [("record", "sent"), ("warn", "sent")])
def test_without_labels_there_is_no_accuracy(model, auditor, action, taken):
    decision = audit(auditor(action), update(model), true_counts=None)
    assert (decision.record.verdict, decision.record.action) == ("inconclusive", taken)
    assert "without the true labels" in decision.reason
    assert not audit(auditor("refuse"), update(model), true_counts=None).send


def test_measured_by_exactness(model, auditor):
    exact = auditor("refuse", measure="exact")
    found = update(model)
    assert audit(exact, found).record.verdict == "over"
    wrong = found.true_counts.roll(1)
    assert audit(exact, found, true_counts=wrong).record.verdict == "within"


def test_a_certificate_needs_no_labels(model, auditor):
    certain = auditor("refuse", measure="exact", attack="exact")
    found = update(model.double(), samples=3, spread=1.0)
    decision = audit(certain, found, true_counts=None)
    assert decision.record.audit["certified"]
    assert decision.record.verdict == "over"
    assert "proven" in decision.reason


@pytest.mark.parametrize(
    ("recipe", "known", "words"),
    [
        ({"learning_rate": None}, {}, "learning rate is not known"),
        ({"batch_size": None}, {}, "number of local steps is not known"),
        ({}, {"instances": 9}, "must agree"),
    ],
)
def test_what_is_not_known_is_not_guessed(model, auditor, recipe, known, words):
    found = update(model)
    for action, sent in (("warn", True), ("refuse", False)):
        training = replace(training_of(found), **recipe)
        decision = audit(auditor(action), found, training=training, **known)
        assert decision.record.verdict == "failed"
        assert words in decision.record.error
        assert words in decision.reason
        assert decision.send is sent


def test_what_the_adapter_could_not_read(auditor, tmp_path):
    decision = auditor("refuse").failed(KeyError("arrays"), Occasion(3, "b"))
    assert not decision.send
    assert read_rounds(tmp_path / "r")[0]["error"] == "KeyError: 'arrays'"


def test_a_snapshot_holds_the_head_alone(model, auditor):
    found = update(model)
    kept = auditor().snapshot(found.before)
    assert set(kept) == {"fc.weight", "fc.bias"}
    assert kept["fc.weight"].data_ptr() != found.before["fc.weight"].data_ptr()
    same = audit(auditor(), found, before=kept)
    assert same.record.verdict == "over"
    assert same.record.error is None


def test_an_attack_on_the_whole_model_needs_it(auditor):
    with pytest.raises(MissingKnowledge, match="calibrated"):
        auditor(attack="calibrated")


def test_the_time_limit_reaches_the_attack(model, auditor):
    found = update(model.double(), samples=4, spread=1.0)
    decision = audit(auditor(attack="exact", time_limit=1e-9), found)
    assert "time_limit" in [flag["name"] for flag in decision.record.audit["flags"]]


def test_records_that_cannot_be_written_refuse_or_warn(model, tmp_path):
    (tmp_path / "file").touch()
    for action, sent in (("refuse", False), ("record", True)):
        policy = Policy(action, threshold=1.0, attack="ilrg", records=str(tmp_path / "file"))
        decision = audit(Auditor(policy), update(model))
        assert decision.send is sent
        assert "no record of it" in decision.reason


def test_random_numbers_go_on_as_without_the_audit(model, auditor):
    found = update(model)
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    audit(auditor(), found)
    audit(auditor(), found, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True)
    )
