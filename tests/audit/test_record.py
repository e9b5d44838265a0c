import dataclasses
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import labelleak
from labelleak.audit.labels import read_labels
from labelleak.audit.record import SCHEMA, read_record
from labelleak.audit.running import audit_observation
from labelleak.audit.verdict import Verdict
from labelleak.errors import InvalidObservation, UnreadableFile
from labelleak.metrics import counts_of
from labelleak.storage import check_writable, write_json, write_whole


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


def test_a_set_has_no_accuracy_to_compare(observation, truth):
    record = audit_observation(observation, "gradinversion", true_counts=truth, threshold=0.5)
    assert record.counts is None
    assert record.verdict == "inconclusive"
    assert "no counts" in record.reason


def test_no_verdict_reads_like_a_promise(observation, truth):
    unscored = audit_observation(observation)
    assert "restored 6 labels of 3 classes" in unscored.reason
    assert "not compared with true ones" in unscored.reason
    assert "no verdict of an audit is proof of safety" in unscored.reason
    unknown = dataclasses.replace(observation, training=labelleak.LocalTraining())
    assert "the share of each: 3 classes" in audit_observation(unknown, "ilrg").reason
    assert (
        "which classes are present: 2 classes"
        in audit_observation(observation, "gradinversion").reason
    )
    scored = audit_observation(observation, "ilrg", true_counts=truth)
    assert scored.reason.startswith("ilrg restored 100.0% of the labels; no threshold was given")
    wrong = truth.flip(0)
    under = audit_observation(observation, "ilrg", true_counts=wrong, threshold=0.9)
    assert under.verdict == "audited"
    assert "restored 66.7% of the labels, at or under 90.0%; a stronger attack" in under.reason


def test_without_a_batch_size_there_are_proportions(observation, truth):
    unknown = dataclasses.replace(observation, training=labelleak.LocalTraining())
    record = audit_observation(unknown, "ilrg", true_counts=truth)
    assert record.counts is None
    assert record.proportions == pytest.approx([2 / 6, 1 / 6, 0, 3 / 6], abs=1e-5)
    assert record.score is not None
    assert record.score["accuracy"] is None
    assert record.score["leacc"] == 1.0


def test_what_cannot_be_judged_is_refused(observation, truth):
    with pytest.raises(InvalidObservation, match="needs the true labels"):
        audit_observation(observation, threshold=0.5)
    for threshold in (float("nan"), -0.01, 1.01, float("inf")):
        with pytest.raises(InvalidObservation, match="from 0 to 1"):
            audit_observation(observation, true_counts=truth, threshold=threshold)
    with pytest.raises(InvalidObservation, match="7 true labels for a batch size of 6"):
        audit_observation(observation, true_counts=truth + torch.tensor([1, 0, 0, 0]))


def test_a_record_is_written_whole_or_not_at_all(tmp_path, observation):
    path = tmp_path / "record.json"
    write_json(path, audit_observation(observation).as_dict())
    assert read_record(path)["counts"] == [2, 1, 0, 3]
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"bad": float("nan")})
    assert read_record(path)["counts"] == [2, 1, 0, 3]
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]
    for place in (tmp_path / "missing" / "r.json", path / "r.json", tmp_path, tmp_path / "\0"):
        for write in (lambda p: write_json(p, {}), check_writable):
            with pytest.raises(UnreadableFile, match="cannot be written"):
                write(place)


def test_a_link_is_replaced_and_never_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new\r\n")
    assert not link.is_symlink()
    assert link.read_bytes() == b"new\r\n"
    assert target.read_text() == "old"


def test_a_file_may_be_the_owners_alone(tmp_path):
    path = tmp_path / "counts.json"
    path.touch(0o644)
    write_json(path, {}, private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_json(tmp_path / "other.json", {})
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "other.json").stat().st_mode == plain.stat().st_mode


def test_threads_write_into_one_folder(tmp_path):
    """Every name that is written to at first must be another one."""

    def write(number):
        path = tmp_path / f"{number}.txt"
        write_whole(path, f"{number} " * 500)
        return path.read_text() == f"{number} " * 500

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(400)))
    assert len(list(tmp_path.iterdir())) == 400


def test_inputs_are_not_writable(tmp_path):
    path = tmp_path / "input"
    path.write_text("kept")
    check_writable(tmp_path / "output", [path])
    with pytest.raises(UnreadableFile, match="would be overwritten"):
        check_writable(tmp_path / "x" / ".." / "input", [tmp_path / "none", path])
    assert [item.name for item in tmp_path.iterdir()] == ["input"]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"0 1 2", [0, 1, 2]),
        (b"\xef\xbb\xbf3,0\r\n\r\n  2,\r\n", [3, 0, 2]),
        (b"007\n", [7]),
        (b"1\t2\x0c3\r4", [1, 2, 3, 4]),
    ],
)
def test_labels_are_read(tmp_path, content, labels):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    found = read_labels(path, 8)
    assert found.tolist() == labels
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no labels"),
        (b"\xef\xbb\xbf\n ,,\n", "holds no labels"),
        (b"0\n\n1 8", "line 3: '8' is no label: integers from 0 to 7"),
        (b"0\r\n-1", "line 2: '-1'"),
        (b"1.0", "line 1: '1.0'"),
        ("\u0663".encode(), "line 1: '\u0663'"),
        (b"0" * 25 + b"99", "line 1: '000"),
        (b"9" * 5000, "line 1: '999"),
        (b"0 1 \xff", "is no text file"),
    ],
)
def test_what_is_no_label_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=re.escape(message)) as error:
        read_labels(path, 8)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 10**5, "is not JSON"),
        ("[]", "no audit record"),
        ('{"schema": "other/9"}', "no audit record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile, match=message):
        read_record(path)
    with pytest.raises(UnreadableFile, match="No such file"):
        read_record(tmp_path / "none.json")
