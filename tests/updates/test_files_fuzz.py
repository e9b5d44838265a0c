"""Broken files of both kinds, made at random: they are read, or refused in one line.

The run is short and always the same. For a long one with other files every time, say how many
examples each test shall try:

    LABELLEAK_FUZZ=100000 pytest tests/updates/test_files_fuzz.py
"""

import io
import json
import math
import os
import struct
import tempfile
import zipfile
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from labelleak.errors import LabelLeakError
from labelleak.observation import Observation
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

EXAMPLES = os.environ.get("LABELLEAK_FUZZ")
fuzzed = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def unchecked_signatures():
    """Let the code itself refuse a broken file, not the type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(2, 3, 3, 3, generator=generator),
        "fc.weight": torch.randn(5, 6, generator=generator),
        "fc.bias": torch.randn(5, generator=generator).double(),
        "half.bias": torch.randn(3, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
    }


def pickled(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


VALID = {
    ".safetensors": (save(tensors(0)), save(tensors(1))),
    ".pt": (pickled(tensors(0)), pickled({"epoch": 1, "state_dict": tensors(1), "lr": 0.1})),
}
PIECES = [content for pair in VALID.values() for content in pair]

NUMBERS = st.sampled_from(
    [
        *(-(2**63), -1, 0, 1, 2, 3, 4, 5, 6, 8, 20, 120, 255, 2**16, 2**31 - 1, 2**31, 2**32),
        *(10**12, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    ]
)
DTYPES = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "I3", ""]
)
BYTES = st.binary(min_size=1, max_size=9) | st.builds(
    lambda number, size: (number % 256**size).to_bytes(size, "little"),
    NUMBERS,
    st.sampled_from([1, 2, 4, 8]),
)

CHANGES = ["flip", "number", "write", "insert", "cut", "end", "copy", "splice"]


@st.composite
def mutated(draw, content):
    """The bytes with a few of them changed, cut, moved or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        change = draw(st.sampled_from(CHANGES))
        if change == "flip" and start < len(content):
            flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        elif change == "number" and (at := content.find(b"K", start)) >= 0:
            # The opcode of a small number in a pickle: a size, a stride, an offset.
            number = draw(NUMBERS) % 2**31
            content = content[:at] + b"J" + struct.pack("<I", number) + content[at + 2 :]
        elif change == "write":
            new = draw(BYTES)
            content = content[:start] + new + content[start + len(new) :]
        elif change == "insert":
            content = content[:start] + draw(BYTES) + content[start:]
        elif change == "cut":
            content = content[:start] + content[stop:]
        elif change == "end":
            content = content[:start]
        elif change == "copy":
            to = draw(st.integers(0, len(content)))
            content = content[:to] + content[start:stop] + content[to:]
        elif change == "splice":
            other = draw(st.sampled_from(PIECES))
            content = content[:start] + other[draw(st.integers(0, len(other))) :]
    return content


@st.composite
def rewritten_header(draw, content):
    """A safetensors file with a changed JSON header or header length."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from([*header, "more.weight", "__metadata__", "a\nb", ""]))
        entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        if isinstance(header.get(name), dict):
            entry = dict(header[name])
        part = draw(st.sampled_from(["dtype", "shape", "data_offsets", "drop", "rename", "any"]))
        if part == "dtype":
            entry["dtype"] = draw(DTYPES)
        elif part in ("shape", "data_offsets"):
            numbers = list(entry.get(part, []))
            numbers[draw(st.integers(0, 2)) :] = draw(st.lists(NUMBERS, max_size=3))
            entry[part] = numbers
        elif part == "any":
            entry = draw(st.sampled_from([None, 1, "text", [], {}, {"dtype": None}]))
        header[name] = entry
        if part == "drop":
            del header[name]
        elif part == "rename":
            header[draw(st.sampled_from(["fc.weight", "module.fc.weight", "\x1b", "x" * 999]))] = (
                header.pop(name)
            )
    encoded = json.dumps(header).encode()
    length = draw(st.just(len(encoded)) | NUMBERS.map(lambda number: number % 2**64))
    return struct.pack("<Q", length) + encoded + data


@st.composite
def rewritten_archive(draw, content):
    """A file of torch.save with changed members, packed again with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        target = draw(st.sampled_from([*old.namelist(), *["archive/data.pkl"] * 9]))
        for name in old.namelist():
            member = old.read(name)
            if name == target:
                member = draw(mutated(member))
            if name != target or draw(st.integers(0, 19)):
                new.writestr(name, member)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(folder, before, update, ending, **options):
    paths = [folder / f"before{ending}", folder / f"update{ending}"]
    for path, content in zip(paths, (before, update), strict=True):
        path.write_bytes(content)
    try:
        observation = read_observation(*paths, **options)
    except LabelLeakError as error:
        event(type(error).__name__)
        message = str(error)
        assert message.isprintable()
        assert 10 < len(message) < 3000
        return
    event("read")
    assert isinstance(observation, Observation)
    head, gradient = observation.head, observation.gradient
    assert head.weight.shape == gradient.weight.shape
    for part in (head, gradient):
        for tensor in (part.weight, part.bias):
            assert tensor is None or torch.isfinite(tensor).all()
            assert tensor is None or math.prod(tensor.shape) < 10**6


OPTIONS = st.sampled_from(
    [
        *[{}] * 3,
        {"head": "fc"},
        {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)},
        {
            "kind": "weights",
            "training": LocalTraining(learning_rate=1e-30, steps=3),
            "head": "fc",
        },
    ]
)
ENDING = pytest.mark.parametrize("ending", VALID)


@st.composite
def pairs(draw, ending, mutate):
    """The model and the update, one or both of them broken."""
    broken = draw(st.sampled_from(["before", "update", "update", "both"]))
    before, update = VALID[ending]
    if broken in ("before", "both"):
        before = draw(mutate(before))
    if broken in ("update", "both"):
        update = draw(mutate(update))
    return before, update


@ENDING
def test_what_is_broken_here_is_valid(folder, ending):
    paths = [folder / f"valid_{part}{ending}" for part in ("before", "update")]
    for path, content in zip(paths, VALID[ending], strict=True):
        path.write_bytes(content)
    assert torch.equal(read_observation(*paths).gradient.weight, tensors(1)["fc.weight"])


@ENDING
@fuzzed
@given(st.data())
def test_bytes(folder, ending, data):
    before, update = data.draw(pairs(ending, mutated))
    read(folder, before, update, ending, **data.draw(OPTIONS))


@fuzzed
@given(pairs(".safetensors", rewritten_header), OPTIONS)
def test_headers(folder, pair, options):
    read(folder, *pair, ".safetensors", **options)


@fuzzed
@given(pairs(".pt", rewritten_archive), OPTIONS)
def test_archives(folder, pair, options):
    read(folder, *pair, ".pt", **options)


@ENDING
@fuzzed
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", struct.pack("<Q", 40) + b"{"]))
def test_noise(folder, ending, noise, start):
    read(folder, VALID[ending][0], start + noise, ending)
