"""Pickles that are broken or would run code: refused in one line."""

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from update_files import refused, save, tensors

from labelleak.updates import read_observation


class Harm:
    """Creates a file when the ordinary pickle loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def archive(path, pickled, *, others=(), compression=zipfile.ZIP_STORED):
    """An archive as torch.save writes it, with another pickle in it."""
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
        """As the key of a dict, hashing overruns the stack or takes exponential time."""
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
        ids=["sparse", "compressed", "meta", "quantized"],
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
