"""A small model and an update of it as files, whole or broken."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from labelleak.errors import (
    LabelLeakError,
    UnreadableFile,
)
from labelleak.updates import read_observation

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


def refused(before, update, match, error=UnreadableFile, **options):
    """Check that these files are refused, with a message of one line."""
    with pytest.raises(error, match=match) as caught:
        read_observation(before, update, **options)
    assert isinstance(caught.value, LabelLeakError)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None
    return str(caught.value)


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
