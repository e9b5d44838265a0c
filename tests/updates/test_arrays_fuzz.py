"""Broken archives of arrays and indexes of shards: they are read, or refused in one line."""

import io
import json
import zipfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_files_fuzz import (  # noqa: F401 (fixtures are used by name)
    OPTIONS,
    folder,
    fuzzed,
    mutated,
    read,
    tensors,
    unchecked_signatures,
)


def archive(seed, write=np.savez, *, in_order=False):
    file = io.BytesIO()
    arrays = {n: value.float().numpy() for n, value in tensors(seed).items()}
    write(file, *arrays.values()) if in_order else write(file, **arrays)
    return file.getvalue()


VALID = [
    (archive(0), archive(1)),
    (archive(0, np.savez_compressed), archive(1, np.savez_compressed)),
    (archive(0, in_order=True), archive(1, in_order=True)),
]


@st.composite
def repacked(draw, content):
    """An archive of which one member is changed, with a right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        target = draw(st.sampled_from(old.namelist()))
        for name in old.namelist():
            member = old.read(name)
            new.writestr(name, draw(mutated(member)) if name == target else member)
    return file.getvalue()


@fuzzed
@given(st.data())
def test_archives(folder, data):  # noqa: F811
    before, update = data.draw(st.sampled_from(VALID))
    change = data.draw(st.sampled_from([mutated, repacked]))
    read(folder, before, data.draw(change(update)), ".npz", **data.draw(OPTIONS))


@fuzzed
@given(st.data())
def test_indexes(folder, data):  # noqa: F811
    places = dict.fromkeys(tensors(0), "before.npz")
    index = json.dumps({"weight_map": places}).encode()
    read(folder, index, data.draw(mutated(index)), ".safetensors.index.json")
