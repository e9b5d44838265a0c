"""Files that do not fit each other, or are no safetensors: refused in one line."""

import json
import os
import struct

import pytest
import torch
from update_files import entry, raw_safetensors, refused, save, tensors

from labelleak.errors import (
    AmbiguousHead,
    InvalidObservation,
    MissingKnowledge,
    UnreadableFile,
)
from labelleak.training import LocalTraining
from labelleak.updates import files, read_observation


class TestDoNotFit:
    @pytest.mark.parametrize("which", ["before", "update"])
    def test_missing_file(self, tmp_path, before, which):
        paths = {"before": before, "update": before, which: tmp_path / "none.pt"}
        refused(**paths, match=r"none\.pt: no such file")

    @pytest.mark.parametrize("name", ["here", "here.pt", "here.safetensors"])
    def test_a_directory(self, tmp_path, before, name):
        (tmp_path / name).mkdir()
        refused(before, tmp_path / name, "is a folder, and no file")

    def test_a_name_that_no_file_can_have(self, before):
        refused(before, "a" * 5000, "not readable: .*File name too long")
        refused(before, "a\0b", "no such file")

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read all"
    )
    def test_a_file_that_may_not_be_read(self, tmp_path, before, ending):
        update = save(tensors(1), tmp_path / f"update{ending}")
        update.chmod(0)
        refused(before, update, "not readable")

    def test_names(self, tmp_path, before, ending):
        gradients = {f"net_{name}": value for name, value in tensors(1).items()}
        update = save(gradients, tmp_path / f"update{ending}")
        message = refused(before, update, "has no tensor 'fc.weight', the head of before")
        assert "net_" in message

    @pytest.mark.parametrize("kind", ["weight", "bias"])
    def test_shapes(self, tmp_path, before, ending, kind):
        gradients = tensors(1)
        gradients[f"fc.{kind}"] = gradients[f"fc.{kind}"][:-1].clone()
        update = save(gradients, tmp_path / f"update{ending}")
        refused(before, update, f"'fc.{kind}' is 4.*, and 5.* in before.safetensors")

    def test_a_head_that_is_not_clear(self, tmp_path, ending):
        state = {"left.weight": torch.ones(3, 4), "right.weight": torch.ones(3, 4)}
        path = save(state, tmp_path / f"before{ending}")
        refused(path, path, "left .3 classes., right .3 classes.", AmbiguousHead)

    def test_no_such_head(self, tmp_path, before):
        refused(before, before, "'top' is not among the tensors", AmbiguousHead, head="top")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
    def test_not_finite(self, tmp_path, before, ending, name, value):
        gradients = tensors(1)
        gradients[name].view(-1)[2] = value
        update = save(gradients, tmp_path / f"update{ending}")
        refused(before, update, "gradient's .* has NaN or infinite entries", InvalidObservation)
        refused(update, before, "head's .* has NaN or infinite entries", InvalidObservation)

    def test_zeros(self, tmp_path, before, ending):
        gradients = {name: torch.zeros_like(value) for name, value in tensors(1).items()}
        update = save(gradients, tmp_path / f"update{ending}")
        refused(before, update, "zero everywhere", InvalidObservation)

    def test_weights_that_did_not_change(self, before):
        options = {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)}
        refused(before, before, "zero everywhere", InvalidObservation, **options)

    @pytest.mark.parametrize(
        "dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn]
    )
    def test_dtypes(self, tmp_path, before, ending, dtype):
        gradients = tensors(1)
        gradients["fc.weight"] = torch.ones(5, 6).to(dtype)
        update = save(gradients, tmp_path / f"update{ending}")
        refused(
            before,
            update,
            "'fc.weight' is torch.*: a plain tensor of floating|more than plain tensors",
        )

    def test_scalars(self, tmp_path, before, ending):
        state = {"weight": torch.tensor(1.0), "bias": torch.tensor(2.0)}
        path = save(state, tmp_path / f"update{ending}")
        refused(path, path, "no final linear layer", AmbiguousHead)
        refused(before, path, "has no tensor 'fc.weight'")

    @pytest.mark.usefixtures("unchecked")
    def test_a_bias_of_another_shape(self, tmp_path, ending):
        state = {"fc.weight": torch.ones(5, 6), "fc.bias": torch.ones(4)}
        path = save(state, tmp_path / f"before{ending}")
        refused(path, path, "bias is 4 beside a weight of 5x6", InvalidObservation)

    @pytest.mark.parametrize("shape", [(5, 0), (0, 6), (0, 0)])
    def test_nothing_in_the_head(self, tmp_path, ending, shape):
        path = save({"fc.weight": torch.ones(shape)}, tmp_path / f"before{ending}")
        errors = (AmbiguousHead, InvalidObservation)
        refused(path, path, "no final linear layer|at least two classes", errors)
        refused(path, path, "at least two classes and one feature", errors, head="fc")


class TestSchedule:
    def test_weights_need_a_learning_rate(self, before):
        told = {"kind": "weights", "training": LocalTraining(steps=1)}
        refused(before, before, "--learning-rate F", MissingKnowledge, **told)

    def test_weights_need_a_number_of_steps(self, before):
        told = {"kind": "weights", "training": LocalTraining(learning_rate=0.1)}
        refused(before, before, "number of local steps is not known", MissingKnowledge, **told)

    @pytest.mark.usefixtures("unchecked")
    def test_kind(self, before):
        refused(before, before, "kind 'weight': use one of", InvalidObservation, kind="weight")


class TestBrokenSafetensors:
    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, -1])
    def test_truncated(self, tmp_path, before, size):
        path = tmp_path / "update.safetensors"
        path.write_bytes(before.read_bytes()[:size])
        refused(before, path, r"update\.safetensors: not readable: ")

    @pytest.mark.parametrize("length", [100 * 10**9, 2**63, 2**64 - 1, 10**6, 3, 0])
    def test_a_header_that_claims_another_size(self, tmp_path, before, length):
        path = raw_safetensors(
            tmp_path / "u.safetensors", {"fc.weight": entry(5, 6)}, bytes(120), length
        )
        refused(before, path, "not readable")

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"fc.weight":',
            b"\xff\xfe",
            b'{"fc.weight": 1}',
            {"fc.weight": {"dtype": "F32"}},
            {"fc.weight": entry(5, 6, dtype="F31")},
            {"fc.weight": entry(5, 6, offsets=[0, 119])},
            {"fc.weight": entry(5, 6, offsets=[120, 0])},
            {"fc.weight": entry(5, 6, offsets=[1, 121])},
            {"fc.weight": entry(5, 6, offsets=[0, 10**12])},
            {"fc.weight": entry(5, 6, offsets=[-1, 119])},
            {"fc.weight": entry(10**6, 10**6)},
            {"fc.weight": entry(2**40, 2**40, offsets=[0, 120])},
            {"fc.weight": entry(-5, -6)},
            {"fc.weight": entry(5, 6), "fc.bias": entry(5)},
        ],
    )
    def test_header(self, tmp_path, before, header):
        path = raw_safetensors(tmp_path / "update.safetensors", header, bytes(120))
        refused(before, path, r"update\.safetensors: not readable: ")

    def test_a_name_twice(self, tmp_path, before):
        one = json.dumps(entry(5, 6)).encode()
        header = b'{"fc.weight":' + one + b',"fc.weight":' + one + b"}"
        path = raw_safetensors(tmp_path / "u.safetensors", header, struct.pack("<30f", *range(30)))
        try:
            observation = read_observation(before, path)
        except UnreadableFile:
            return
        assert torch.equal(observation.gradient.weight, torch.arange(30.0).reshape(5, 6))

    def test_no_tensors(self, tmp_path, before):
        path = raw_safetensors(tmp_path / "update.safetensors", {})
        refused(before, path, "holds no named tensors")

    @pytest.mark.parametrize("name", ["fc\nweight", "\x1b[2Jfc.weight", "a\u202eb", "x" * 501])
    def test_names_that_would_spoil_a_message(self, tmp_path, before, name):
        path = raw_safetensors(tmp_path / "update.safetensors", {name: entry(5, 6)}, bytes(120))
        message = refused(before, path, "a tensor's name is too long or not printable")
        assert name not in message

    def test_another_kind_of_file(self, tmp_path, before):
        path = tmp_path / "update.safetensors"
        torch.save(tensors(1), path)
        refused(before, path, "not readable")
        path.write_text("Dear sir or madam\n" * 100)
        refused(before, path, "not readable")


def test_what_a_reader_says_is_one_printable_line(tmp_path, before, monkeypatch):
    def fail(*_):
        raise RuntimeError("\n  first\n\x1b[31msecond\t" + "x" * 1000)

    monkeypatch.setattr(files, "_open_safetensors", fail)
    message = refused(before, before, "not readable: first")
    assert message.isprintable()
    assert len(message) < len(str(before)) + 250


def test_no_memory(before, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(files, "_open_safetensors", fail)
    refused(before, before, "claims more data than this machine has memory")
