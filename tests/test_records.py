import dataclasses
import json

import pytest
import torch
from torch import nn

import labelleak
from labelleak.errors import InvalidObservation, UnreadableFile
from labelleak.metrics import counts_of
from labelleak.records import SCHEMA, Verdict, audit, read_record, write_json


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
    record = audit(observation, "ilrg", true_counts=truth, source={"update": "u.safetensors"})
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
    record = audit(observation, true_counts=truth, threshold=threshold)
    assert record.verdict == verdict.value
    assert record.exit_status == status


def test_a_low_score_under_a_doubtful_flag_is_no_evidence(observation, truth):
    noisy = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    gradient = labelleak.HeadGradient(noisy, observation.gradient.bias)
    doubtful = observation.with_gradient(gradient)
    record = audit(doubtful, "ilrg", true_counts=truth, threshold=1.0)
    assert "sums_not_zero" in [flag["name"] for flag in record.flags]
    assert record.verdict == "inconclusive"
    assert record.exit_status == 3
    assert audit(doubtful, "ilrg").exit_status == 3


def test_a_set_has_no_accuracy_to_compare(observation, truth):
    record = audit(observation, "gradinversion", true_counts=truth, threshold=0.5)
    assert record.counts is None
    assert record.verdict == "inconclusive"
    assert "no counts" in record.reason


def test_without_a_batch_size_there_are_proportions(observation, truth):
    unknown = dataclasses.replace(observation, batch_size=None)
    record = audit(unknown, true_counts=truth)
    assert record.counts is None
    assert record.proportions == pytest.approx([2 / 6, 1 / 6, 0, 3 / 6], abs=1e-5)
    assert record.score is not None
    assert record.score["accuracy"] is None
    assert record.score["leacc"] == 1.0


def test_what_cannot_be_judged_is_refused(observation, truth):
    with pytest.raises(InvalidObservation, match="needs the true labels"):
        audit(observation, threshold=0.5)
    with pytest.raises(InvalidObservation, match="7 true labels for a batch size of 6"):
        audit(observation, true_counts=truth + torch.tensor([1, 0, 0, 0]))


def test_a_record_is_written_whole_or_not_at_all(tmp_path, observation):
    path = tmp_path / "record.json"
    write_json(path, audit(observation).as_dict())
    assert read_record(path)["counts"] == [2, 1, 0, 3]
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"bad": float("nan")})
    assert read_record(path)["counts"] == [2, 1, 0, 3]
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]
    with pytest.raises(UnreadableFile, match="cannot be written"):
        write_json(tmp_path / "missing" / "record.json", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "no audit record"), ('{"schema": "other/9"}', "no audit record")],
)
def test_what_is_no_record_is_refused(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile, match=message):
        read_record(path)
    with pytest.raises(UnreadableFile, match="No such file"):
        read_record(tmp_path / "none.json")
