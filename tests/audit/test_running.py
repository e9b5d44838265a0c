import dataclasses
import json

import pytest
import torch
from torch import nn

import labelleak
from labelleak import restore
from labelleak.audit.record import SCHEMA
from labelleak.audit.running import audit_observation
from labelleak.audit.verdict import Verdict
from labelleak.errors import InvalidObservation
from labelleak.metrics import counts_of


@pytest.fixture
def truth():
    return counts_of(torch.tensor([0, 0, 1, 3, 3, 3]), 4)


@pytest.fixture
def observation():
    """Six samples of four classes with one embedding per class: iLRG is exact."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4).eval()
    means = torch.rand(4, 5)
    labels = torch.tensor([0, 0, 1, 3, 3, 3])
    return labelleak.capture(model, means[torch.zeros(6, dtype=torch.int64)], labels)


def test_the_record_holds_what_was_restored_and_is_plain_json(observation, truth):
    record = audit_observation(
        observation, "ilrg", true_counts=truth, source={"update": "u.safetensors"}
    )
    content = json.loads(json.dumps(record.as_dict(), allow_nan=False))
    assert content["schema"] == SCHEMA
    assert content["counts"] == [2, 1, 0, 3]
    assert content["true_counts"] == [2, 1, 0, 3]
    assert content["present"] == [0, 1, 3]
    assert content["score"]["accuracy"] == 1.0
    assert content["score_rounded"]["lnacc"] == 1.0
    assert content["source"] == {"update": "u.safetensors"}
    assert content["verdict"] == "audited"


@pytest.mark.parametrize(
    ("threshold", "verdict", "status"),
    [(None, Verdict.AUDITED, 0), (1.0, Verdict.AUDITED, 0), (0.99, Verdict.OVER_THRESHOLD, 1)],
)
def test_the_threshold_decides_the_exit_status(observation, truth, threshold, verdict, status):
    record = audit_observation(observation, true_counts=truth, threshold=threshold)
    assert record.verdict == verdict.value
    assert record.exit_status == status


def test_a_low_score_under_a_doubtful_flag_is_no_evidence(observation, truth):
    noisy = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    gradient = labelleak.HeadGradient(noisy, observation.gradient.bias)
    doubtful = dataclasses.replace(observation, gradient=gradient)
    record = audit_observation(doubtful, "ilrg", true_counts=truth, threshold=1.0)
    assert "sums_not_zero" in [flag["name"] for flag in record.flags]
    assert record.verdict == "inconclusive"
    assert record.exit_status == 3
    assert audit_observation(doubtful, "ilrg").exit_status == 3


def test_without_a_batch_size_there_are_proportions(observation, truth):
    unknown = dataclasses.replace(observation, training=labelleak.LocalTraining())
    record = audit_observation(unknown, "ilrg", true_counts=truth)
    assert record.counts is None
    assert record.proportions == pytest.approx([2 / 6, 1 / 6, 0, 3 / 6], abs=1e-5)
    assert record.score is not None
    assert record.score["accuracy"] is None
    assert record.score["leacc"] == 1.0


def test_what_cannot_be_judged_is_refused(observation, truth, unchecked):
    assert audit_observation(observation, "ilrg", threshold=0.5).verdict == "inconclusive"
    for rule in ({"measure": "recall"}, {"floor": 1}, {"prior": [1.0]}, {"prior": [0.0] * 4}):
        with pytest.raises(InvalidObservation, match=next(iter(rule))):
            audit_observation(observation, true_counts=truth, **rule)
    for threshold in (float("nan"), -0.01, 1.01, float("inf")):
        with pytest.raises(InvalidObservation, match="from 0 to 1"):
            audit_observation(observation, true_counts=truth, threshold=threshold)
    with pytest.raises(InvalidObservation, match="7 true labels for a batch size of 6"):
        audit_observation(observation, true_counts=truth + torch.tensor([1, 0, 0, 0]))


def test_a_set_has_no_counts_and_no_accuracy(observation, truth):
    record = audit_observation(observation, "gradinversion", true_counts=truth)
    assert (record.counts, record.proportions, record.score_rounded) == (None, None, None)
    assert record.score["accuracy"] is None
    assert record.present == restore(observation, "gradinversion").present.nonzero()[:, 0].tolist()
