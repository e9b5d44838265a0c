import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labelleak import MissingKnowledge
from labelleak.federated import Auditor, Occasion, Policy, read_rounds, train_locally
from labelleak.federated.allow import Allow
from labelleak.federated.contents import look_at
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


def test_a_record_says_which_run_and_what_was_asked(model, auditor, tmp_path):
    audit(auditor(), update(model), occasion=Occasion(1, "a", run="run 7", task="train"))
    (written,) = read_rounds(tmp_path / "r")
    assert (written["run"], written["task"]) == ("run 7", "train")


def test_what_nobody_told_is_not_known_in_the_record(model, auditor):
    training = LocalTraining(learning_rate=RATE, batch_size=8)
    source = audit(auditor(), update(model), training=training).record.audit["source"]
    assert source["training"]["optimizer"] is None
    assert source["training"]["momentum"] is None
    assert "the optimizer is not known: it is taken for SGD" in source["approximations"]


def counted(found, steps):
    before = {**found.before, "norm.num_batches_tracked": torch.tensor(7)}
    return before, {**found.after, "norm.num_batches_tracked": torch.tensor(7 + steps)}


def test_the_steps_that_batchnorm_counted_are_used(model, auditor):
    found = update(model, batch_size=4, epochs=2)
    before, after = counted(found, 4)
    training = LocalTraining("sgd", learning_rate=RATE, momentum=0.0)
    for start in (before, auditor().snapshot(before)):
        record = audit(auditor(), found, after, before=start, training=training).record
        assert record.audit["local_steps"] == 4
        assert record.audit["source"]["approximations"] == []
        assert record.audit["source"]["loss"] == "cross_entropy"
        assert record.leaks[0]["what"] == "number of local steps"


def test_a_count_that_contradicts_what_was_told_is_noted(model, auditor):
    found = update(model, batch_size=4, epochs=2)
    before, after = counted(found, 4)
    training = replace(training_of(found), epochs=1)
    record = audit(auditor(), found, after, before=before, training=training).record
    assert record.audit["local_steps"] == 4
    assert record.audit["source"]["approximations"] == [
        "2 local steps were told or follow, and BatchNorm counted 4: 2 epochs are assumed"
    ]


def test_a_count_that_cannot_be_is_an_audit_that_failed(model, auditor):
    found = update(model)
    before, after = counted(found, 3)
    training = LocalTraining("sgd", learning_rate=RATE, epochs=2)
    record = audit(auditor(), found, after, before=before, training=training).record
    assert record.verdict == "failed"
    assert "2 local epochs in 3 local steps" in record.error
    before, after = counted(found, 2**40)
    decision = audit(auditor("refuse", threshold=1.0), found, after, before=before)
    assert (decision.record.verdict, decision.send) == ("failed", False)
    assert "no count of local steps: norm.num_batches_tracked" in decision.record.error


def test_what_leaves_beside_the_weights(model, auditor):
    found = update(model)
    contents = look_at({"m": {"x": 1, "num_examples": 8}}, Allow(("num_examples",)))
    for action, taken in (("record", "sent"), ("warn", "warned"), ("refuse", "refused")):
        decision = audit(auditor(action, threshold=1.0), found, contents=contents)
        record = decision.record
        assert (record.verdict, record.action) == ("failed", taken)
        assert record.unaudited == ["m/x (a number)"]
        assert record.leaks[0]["what"] == "number of local samples"
        assert record.audit["score"]["exact"]


def test_a_message_without_weights(auditor, tmp_path):
    nothing = look_at({"m": {"loss": 1.0, "num_examples": 8}}, Allow())
    assert auditor("refuse").audit_message(nothing, OCCASION) is None
    assert not (tmp_path / "r").exists()
    by_class = look_at({"m": {"class_0_accuracy": math.nan}}, Allow())
    decision = auditor("refuse").audit_message(by_class, OCCASION)
    assert (decision.send, decision.record.verdict) == (True, "within")
    assert "NaN" in decision.record.leaks[0]["why"]
    decision = auditor("refuse").audit_message(look_at({"x": b"1"}, Allow()), OCCASION)
    assert (decision.send, decision.record.verdict) == (False, "failed")
    assert len(read_rounds(tmp_path / "r")) == 2


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
    decision = audit(auditor(attack="exact", time_limit=1e-4), found)
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
