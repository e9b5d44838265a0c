"""Opening what ``numpy.savez`` wrote, by a stranger: no pickled objects, one array at a time."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from labelleak.errors import UnreadableFile
from labelleak.updates.layout import is_in_order
from labelleak.updates.parameters import as_tensor

# The header of an array names its type and shape: a hundred characters, which are parsed as Python.
_LONGEST_HEADER = 512
# By the version of the format: the bytes that tell the length of the header, and its reader.
_HEADERS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}


def shapes_in_archive(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every array of an ``.npz`` file by name; those without names in their order.

    Raises:
        UnreadableFile: It is no such file. What the readers raise at a damaged file is passed on.
    """
    if not zipfile.is_zipfile(path):
        raise UnreadableFile(f"{path}: no archive as numpy.savez writes it")
    with zipfile.ZipFile(path) as archive:
        members = [item.filename for item in archive.infolist()]
        if len({name.casefold() for name in members}) < len(members):
            raise UnreadableFile(f"{path}: two of its arrays have one name")
        shapes = {}
        for member in members:
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    shapes[member.removesuffix(".npy")] = _header(file, path)[0]
    if is_in_order(list(shapes)):
        numbers = sorted(shapes, key=lambda name: int(name.removeprefix("arr_")))
        return {name: shapes[name] for name in numbers}
    return shapes


def read_in_archive(path: Path, name: str) -> Tensor:
    """One array of an ``.npz`` file, as a tensor.

    Raises:
        UnreadableFile: It holds objects, which would have to be unpickled; or it has another size
            than it claims.
    """
    with zipfile.ZipFile(path) as archive:
        item = archive.getinfo(f"{name}.npy")
        with archive.open(item) as file:
            shape, is_fortran, dtype = _header(file, path)
            if dtype.hasobject:
                raise UnreadableFile(
                    f"{path}: {name!r} holds Python objects, and reading them could run code: save "
                    "plain arrays of numbers"
                )
            size = math.prod(shape) * dtype.itemsize
            if size != item.file_size - file.tell():
                raise UnreadableFile(f"{path}: {name!r} has another size than it claims")
            array = np.frombuffer(file.read(), dtype=dtype)
    return as_tensor(name, array.reshape(shape, order="F" if is_fortran else "C"))


def _header(file: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order of axes (Fortran's or not) and type of the array that a file holds."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UnreadableFile(f"{path}: arrays of a format that is not known")
    width, read = _HEADERS[version]
    size = file.read(width)
    length = int.from_bytes(size, "little")
    if length > _LONGEST_HEADER:
        raise UnreadableFile(
            f"{path}: an array with a header of {length} characters: at most {_LONGEST_HEADER} are "
            "read"
        )
    shape, is_fortran, dtype = read(io.BytesIO(size + file.read(length)))
    if min(shape, default=0) < 0:
        raise UnreadableFile(f"{path}: an array of a negative size")
    return tuple(shape), is_fortran, dtype
