import json
import os
import pickle
import struct
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labelleak.errors import (
    AmbiguousHead,
    InvalidObservation,
    LabelLeakError,
    MissingKnowledge,
    UnreadableFile,
)
from labelleak.loss import Loss
from labelleak.training import LocalTraining
from labelleak.updates import files, observe, observe_update, open_tensors, read_observation

MODEL = {
    "conv.weight": (4, 3, 3, 3),
    "norm.running_mean": (4,),
    "hidden.weight": (6, 36),
    "hidden.bias": (6,),
    "fc.weight": (5, 6),
    "fc.bias": (5,),
}
ENDINGS = [".safetensors", ".pt"]


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in MODEL.items()
    }


def save(content, path):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.fixture(params=ENDINGS, ids=["safetensors", "pt"])
def ending(request):
    return request.param


@pytest.fixture
def before(tmp_path):
    return save(tensors(0), tmp_path / "before.safetensors")


def refused(before, update, match, error=UnreadableFile, **options):
    """The two are refused in one line."""
    with pytest.raises(error, match=match) as caught:
        read_observation(before, update, **options)
    assert isinstance(caught.value, LabelLeakError)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None
    return str(caught.value)


class TestRoundTrip:
    @pytest.mark.parametrize("endings", list(product(ENDINGS, ENDINGS)), ids=" ".join)
    def test_gradients(self, tmp_path, endings):
        state, gradients = tensors(0), tensors(1)
        before = save(state, tmp_path / f"before{endings[0]}")
        update = save(gradients, tmp_path / f"update{endings[1]}")
        observation = read_observation(
            before,
            update,
            loss=Loss(label_smoothing=0.1),
            training=LocalTraining(batch_size=24),
        )
        expected = observe(state, gradients)
        assert observation.head.name == "fc"
        for part in ("head", "gradient"):
            found, wanted = getattr(observation, part), getattr(expected, part)
            assert torch.equal(found.weight, wanted.weight)
            assert torch.equal(found.bias, wanted.bias)
        assert observation.batch_size == 24
        assert observation.loss.label_smoothing == 0.1
        assert observation.model is None
        assert observation.gradients is None

    def test_weights(self, tmp_path, ending):
        state, after = tensors(0), tensors(1)
        observation = read_observation(
            save(state, tmp_path / f"before{ending}"),
            save(after, tmp_path / f"after{ending}"),
            kind="weights",
            training=LocalTraining(learning_rate=0.05, steps=3),
        )
        expected = observe_update(
            None, state, after, training=LocalTraining(learning_rate=0.05, steps=3)
        )
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert torch.equal(observation.gradient.bias, expected.gradient.bias)
        assert observation.local_steps == 3

    def test_local_steps_of_gradients(self, tmp_path, before, ending):
        update = save(tensors(1), tmp_path / f"update{ending}")
        observation = read_observation(before, update, training=LocalTraining(steps=4))
        assert observation.local_steps == 4
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, tmp_path, ending, dtype):
        before = save(tensors(0, dtype), tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        observation = read_observation(before, update)
        assert observation.head.weight.dtype == dtype
        assert torch.equal(observation.head.weight, tensors(0, dtype)["fc.weight"])
        assert observation.gradient.weight.dtype == torch.float32

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "gradients"])
    def test_a_state_dict_inside(self, tmp_path, before, key):
        content = {"epoch": 3, "step": torch.tensor(7.0), key: tensors(1), "note": "hello"}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    @pytest.mark.parametrize("key", ["network", "state_dict"])
    @pytest.mark.parametrize("beside", [{}, {"loss": torch.ones(3), "step": torch.tensor(7.0)}])
    def test_a_state_dict_beside_statistics(self, tmp_path, before, key, beside):
        content = {**beside, "optimizer": {"momentum": torch.ones(4)}, key: tensors(1)}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_statistics_beside_a_state_dict(self, tmp_path, before):
        content = {**tensors(1), "model": {"step": torch.tensor(7.0)}}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_parameters_that_require_grad(self, tmp_path, before):
        content = {name: torch.nn.Parameter(value) for name, value in tensors(1).items()}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])
        assert not observation.gradient.weight.requires_grad

    def test_a_module_s_state_dict(self, tmp_path):
        layers = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
        layers.append(torch.nn.Linear(6, 3))
        before = save(layers.state_dict(), tmp_path / "before.pt")
        gradients = {name: value.detach() + 1.0 for name, value in layers.named_parameters()}
        observation = read_observation(before, save(gradients, tmp_path / "update.pth"))
        assert observation.head.name == "2"
        assert torch.equal(observation.gradient.weight, layers[2].weight + 1.0)

    def test_tensors_that_are_views(self, tmp_path, before):
        pool = torch.arange(100.0)
        content = {"fc.weight": pool[3:63].reshape(6, 10).T[::2], "fc.bias": pool[90::2]}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, content["fc.weight"])
        assert torch.equal(observation.gradient.bias, content["fc.bias"])

    def test_tensors_that_share_their_data(self, tmp_path, before):
        content = {**tensors(1), "decoder.weight": tensors(1)["fc.weight"]}
        content["fc.weight"] = content["decoder.weight"]
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, content["fc.weight"])

    @pytest.mark.parametrize("wrapped", ["before", "update", "both"])
    def test_wrappers(self, tmp_path, ending, wrapped):
        def named(seed, part):
            prefix = "module." if wrapped in (part, "both") else ""
            return {prefix + name: value for name, value in tensors(seed).items()}

        before = save(named(0, "before"), tmp_path / f"before{ending}")
        update = save(named(1, "update"), tmp_path / f"update{ending}")
        observation = read_observation(before, update)
        assert observation.head.name == "fc"
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_a_head_without_bias(self, tmp_path, ending):
        state = {name: value for name, value in tensors(0).items() if name != "fc.bias"}
        observation = read_observation(
            save(state, tmp_path / f"before{ending}"),
            save(tensors(1), tmp_path / f"update{ending}"),
        )
        assert observation.head.bias is None
        assert not observation.has_bias

    def test_no_bias_gradient(self, tmp_path, before, ending):
        gradients = {"fc.weight": tensors(1)["fc.weight"]}
        observation = read_observation(before, save(gradients, tmp_path / f"update{ending}"))
        assert observation.gradient.bias is None

    def test_no_bias_after_the_steps(self, tmp_path, before, ending):
        after = {"fc.weight": tensors(1)["fc.weight"]}
        options = {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)}
        update = save(after, tmp_path / f"update{ending}")
        observation = read_observation(before, update, **options)
        expected = observe_update(None, tensors(0), after, learning_rate=0.1)
        assert observation.gradient.bias is None
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert observation.gradient.rounding == expected.gradient.rounding

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_a_named_head(self, tmp_path, ending, prefix):
        state = {prefix + name: value for name, value in tensors(0).items()}
        before = save(state, tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        for head in ("hidden", "module.hidden", "module.hidden.weight", "_orig_mod.hidden"):
            observation = read_observation(before, update, head=head)
            assert observation.head.name == "hidden"
            assert torch.equal(observation.gradient.weight, tensors(1)["hidden.weight"])

    def test_paths_may_be_strings_and_endings_upper_case(self, tmp_path, before):
        update = tmp_path / "update.PT"
        torch.save(tensors(1), update)
        assert read_observation(str(before), str(update)).classes == 5

    def test_the_update_may_hold_the_head_alone(self, tmp_path, before, ending):
        gradients = {name: value for name, value in tensors(1).items() if name.startswith("fc")}
        observation = read_observation(before, save(gradients, tmp_path / f"update{ending}"))
        assert torch.equal(observation.gradient.weight, gradients["fc.weight"])


class TestOnlyTheHeadIsRead:
    def test_open_tensors_reads_none(self, tmp_path, ending, monkeypatch):
        path = save(tensors(0), tmp_path / f"model{ending}")
        reads = record_reads(monkeypatch)
        opened = open_tensors(path)
        assert opened.path == path
        assert opened.shapes == MODEL
        assert reads == []
        assert torch.equal(opened.tensor("conv.weight"), tensors(0)["conv.weight"])
        assert reads == ["conv.weight"]

    def test_read_observation(self, tmp_path, ending, monkeypatch):
        before = save(tensors(0), tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        reads = record_reads(monkeypatch)
        read_observation(before, update)
        assert reads == ["fc.weight", "fc.bias"] * 2

    def test_what_else_there_is_may_be_broken(self, tmp_path, before, ending):
        gradients = tensors(1)
        gradients["conv.weight"].fill_(float("nan"))
        gradients["hidden.weight"] = torch.zeros(2, dtype=torch.int64)
        gradients["hidden.bias"] = torch.zeros(3, dtype=torch.complex64)
        if ending == ".safetensors":
            gradients["gate.weight"] = torch.zeros(3, 3).to(torch.float8_e4m3fn)
        else:
            gradients["embedding.weight"] = torch.eye(3).to_sparse()
            gradients["huge.weight"] = torch.zeros(1).expand(10**6, 10**6)
        read_observation(before, save(gradients, tmp_path / f"update{ending}"))

    def test_gigabytes_of_other_tensors_take_no_memory(self, tmp_path):
        resource = pytest.importorskip("resource")
        size = 1 << 30
        header = {
            "conv.weight": entry(size // 4),
            "fc.weight": entry(2, 3, offsets=[size, size + 24]),
        }
        path = raw_safetensors(tmp_path / "model.safetensors", header)
        with path.open("ab") as file:
            # A hole, which takes no space on the disk.
            file.truncate(file.tell() + size)
            file.seek(0, os.SEEK_END)
            file.write(struct.pack("<6f", *range(6)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert open_tensors(path).tensor("fc.weight").sum() == 15.0
        # In KiB, or in bytes on macOS.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < size / 8 / 1024


def record_reads(monkeypatch):
    reads = []

    def recording(open_file):
        def opened(path):
            shapes, read = open_file(path)
            return shapes, lambda name: (reads.append(name), read(name))[1]

        return opened

    for name in ("_open_safetensors", "_open_pickled"):
        monkeypatch.setattr(files, name, recording(getattr(files, name)))
    return reads


class TestDoNotFit:
    @pytest.mark.parametrize("which", ["before", "update"])
    def test_missing_file(self, tmp_path, before, which):
        paths = {"before": before, "update": before, which: tmp_path / "none.pt"}
        refused(**paths, match=r"none\.pt: no such file")

    @pytest.mark.parametrize("name", ["here", "here.pt", "here.safetensors"])
    def test_a_directory(self, tmp_path, before, name):
        (tmp_path / name).mkdir()
        refused(before, tmp_path / name, "no such file")

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


def raw_safetensors(path, header, data=b"", length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(encoded) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + encoded + data)
    return path


def entry(*shape, dtype="F32", offsets=None):
    size = 4
    for extent in shape:
        size *= extent
    return {"dtype": dtype, "shape": list(shape), "data_offsets": offsets or [0, size]}


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


class Harm:
    """Unpickled by the ordinary pickle, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def archive(path, pickled, *, others=(), compression=zipfile.ZIP_STORED):
    """What torch.save writes, with another pickle in it."""
    torch.save({"fc.weight": torch.arange(30.0).reshape(5, 6)}, path)
    with zipfile.ZipFile(path) as source:
        items = [(item.filename, source.read(item)) for item in source.infolist()]
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in items:
            changed = content
            if name.endswith("data.pkl"):
                changed = pickled(content) if callable(pickled) else pickled
            target.writestr(name, changed)
        for name, content in others:
            target.writestr(name, content)
    return path


class TestBrokenPickles:
    def test_the_helper_writes_what_can_be_read(self, tmp_path, before):
        path = archive(tmp_path / "update.pt", lambda pickled: pickled)
        assert read_observation(before, path).gradient.weight.sum() == 435.0

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_code_is_not_run(self, tmp_path, before, protocol):
        harmed = tmp_path / "harmed"
        pickled = pickle.dumps({"fc.weight": Harm(harmed)}, protocol=protocol)
        plain = tmp_path / "plain.pt"
        plain.write_bytes(pickled)
        refused(before, plain, "reading it as a pickle could run its code")
        refused(before, archive(tmp_path / "update.pt", pickled), r"update\.pt: ")
        saved = tmp_path / "saved.pt"
        torch.save({**tensors(1), "more": Harm(harmed)}, saved)
        refused(before, saved, "holds more than plain tensors .*save the state dict alone")
        assert not harmed.exists()
        pickle.loads(pickled)
        assert harmed.exists()

    @pytest.mark.parametrize(
        "call",
        [
            b"cbuiltins\nbytearray\n",
            b"c__builtin__\nbytearray\n",
            b"ctorch.storage\nUntypedStorage\n",
            b"ctorch\nUntypedStorage\n",
            b"ctorch\nTensor\n",
            b"c_codecs\nencode\n",
            b"cbuiltins\neval\n",
            b"\x8c\x08builtins\x8c\x09bytearray\x93",
        ],
    )
    def test_a_call_that_fills_the_memory(self, tmp_path, before, call):
        # A name, then call(2_000_000_000), as a dict's item.
        pickled = b"\x80\x02}X\x01\x00\x00\x00a" + call + b"J\x00\x94\x35\x77\x85Rs."
        refused(before, archive(tmp_path / "update.pt", pickled), r"update\.pt: ")

    @pytest.mark.parametrize(
        "nested",
        [
            b")" + b"\x85" * 1_000_000,
            b")" + b"N\x86" * 1_000_000,
            b")q\x00" + b"h\x00h\x00\x86q\x00" * 60,
            b")" + b"2\x86" * 60,
            b")" + b"(h\x00t" * 60,
        ],
        ids=["deep", "deep pairs", "shared", "duplicated", "unknown"],
    )
    def test_tuples_without_end(self, tmp_path, before, nested):
        """Hashed as the key of a dict, the first overrun the stack and the others take ages."""
        pickled = b"\x80\x02}" + nested + b"K\x01s."
        refused(before, archive(tmp_path / "update.pt", pickled), r"update\.pt: ")

    @pytest.mark.parametrize("shape", [(10**6, 10**6), (5, 6)])
    def test_a_tensor_that_repeats_one_number(self, tmp_path, before, shape):
        weight = torch.ones(1).expand(shape)
        path = save({"fc.weight": weight, "fc.bias": torch.ones(5)}, tmp_path / "update.pt")
        assert path.stat().st_size < 3000
        if shape == (5, 6):
            assert read_observation(before, path).gradient.weight.sum() == 30.0
        else:
            refused(path, path, "'fc.weight' claims to be larger than its file")

    def test_a_tensor_larger_than_its_data(self, tmp_path, before):
        def claim_more(pickled):
            assert b"K\x05K\x06\x86" in pickled
            return pickled.replace(b"K\x05K\x06\x86", b"J\x00\x00\x01\x00J\x00\x00\x01\x00\x86")

        refused(before, archive(tmp_path / "update.pt", claim_more), "not readable: .*storage")

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.eye(5, 6).to_sparse(),
            lambda: torch.eye(5, 6).to_sparse_csr(),
            lambda: torch.ones(5, 6, device="meta"),
            lambda: torch.quantize_per_tensor(torch.ones(5, 6), 0.1, 0, torch.qint8),
        ],
        ids=["sparse", "compressed", "meta", "quantised"],
    )
    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    def test_tensors_of_other_kinds(self, tmp_path, before, make):
        path = save({**tensors(1), "fc.weight": make()}, tmp_path / "update.pt")
        refused(before, path, "a plain tensor of|holds more than plain tensors")

    @pytest.mark.parametrize(
        "content",
        [
            *([], {}, [torch.ones(5, 6)], torch.ones(5, 6), "text", 7, None, {"fc.weight": 1.0}),
            {1: torch.ones(5, 6)},
            {"state_dict": {"state_dict": {"fc.weight": torch.ones(5, 6)}}},
        ],
    )
    def test_no_state_dict(self, tmp_path, before, content):
        refused(before, save(content, tmp_path / "update.pt"), "holds no state dict")

    def test_a_dict_that_holds_itself(self, tmp_path, before):
        content = {}
        content["state_dict"] = content
        refused(before, save(content, tmp_path / "update.pt"), "holds no state dict")

    def test_compressed(self, tmp_path, before):
        path = tmp_path / "update.pt"
        bomb = archive(
            path,
            lambda pickled: pickled,
            others=[("x", bytes(10**7))],
            compression=zipfile.ZIP_LZMA,
        )
        assert bomb.stat().st_size < 10**5
        refused(before, bomb, "it is compressed")

    def test_a_member_that_claims_to_be_huge(self, tmp_path, before):
        path = archive(tmp_path / "update.pt", lambda pickled: pickled)
        content = bytearray(path.read_bytes())
        first = content.index(b"PK\x01\x02")
        content[first + 20 : first + 28] = struct.pack("<II", 2**31, 2**31)
        path.write_bytes(content)
        refused(before, path, "its directory is wrong")

    @pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
    @pytest.mark.parametrize("name", ["update/data.pkl", "update/DATA.PKL", "another/data.pkl"])
    def test_a_second_pickle(self, tmp_path, before, name):
        harm = pickle.dumps(Harm(tmp_path / "harmed"), protocol=2)
        path = archive(tmp_path / "update.pt", lambda pickled: pickled, others=[(name, harm)])
        refused(before, path, "its directory is wrong")

    @pytest.mark.parametrize("size", [0, 1, 10, 100, 1000, -1, -30])
    def test_truncated(self, tmp_path, before, size):
        path = save(tensors(1), tmp_path / "update.pt")
        path.write_bytes(path.read_bytes()[:size])
        refused(before, path, r"update\.pt: ")

    def test_before_pytorch_1_6(self, tmp_path, before):
        path = tmp_path / "update.pt"
        torch.save(tensors(1), path, _use_new_zipfile_serialization=False)
        refused(before, path, "no archive as torch.save writes it, .* save the state dict again")

    def test_another_archive(self, tmp_path, before):
        path = tmp_path / "update.pt"
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("hello.txt", "hello")
        refused(before, path, "its directory is wrong")

    def test_names_that_would_spoil_a_message(self, tmp_path, before):
        path = save({"fc\nweight": torch.ones(5, 6)}, tmp_path / "update.pt")
        refused(before, path, "a tensor's name is too long or not printable")

    def test_another_kind_of_file(self, tmp_path, before):
        path = tmp_path / "update.bin"
        path.write_bytes(before.read_bytes())
        refused(before, path, "no archive as torch.save writes it")


def test_what_a_reader_says_is_one_printable_line(tmp_path, before, monkeypatch):
    def fail(_):
        raise RuntimeError("\n  first\n\x1b[31msecond\t" + "x" * 1000)

    monkeypatch.setattr(files, "_open_safetensors", fail)
    message = refused(before, before, "not readable: first")
    assert message.isprintable()
    assert len(message) < len(str(before)) + 250


def test_no_memory(before, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(files, "_open_safetensors", fail)
    refused(before, before, "claims more data than this machine has memory")
