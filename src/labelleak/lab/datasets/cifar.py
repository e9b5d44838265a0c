"""The CIFAR-10 and CIFAR-100 "python version" (https://www.cs.toronto.edu/~kriz/cifar.html).

Those files are pickles, and a pickle may run any program. Here they are read by an unpickler that
knows numbers, text, bytes, lists, dicts and arrays of unsigned bytes, and nothing else: not even
NumPy's own unpickling is run. The result is kept as a plain npz.
"""

import io
import logging
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from labelleak.errors import UnreadableFile
from labelleak.lab.datasets.cache import Arrays, remembered
from labelleak.lab.datasets.dataset import UncheckedSamples

_log = logging.getLogger(__name__)

# The largest batch file (CIFAR-100, train) has 155 MB.
_LARGEST = 512 * 1024**2
_SIDE = 32


@dataclass(frozen=True)
class Layout:
    """How one CIFAR distribution is named.

    Attributes:
        folder: what its archive unpacks to.
        archive: the archive itself.
        splits: split -> batch files, in order.
        meta: the file of class names.
        labels: key of the labels in a batch.
        names: key of the class names in `meta`.
    """

    folder: str
    archive: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    labels: str
    names: str


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    splits={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    meta="batches.meta",
    labels="labels",
    names="label_names",
)
CIFAR100 = Layout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    splits={"train": ("train",), "test": ("test",)},
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
)


def read(folder: Path, split: str, layout: Layout) -> UncheckedSamples | None:
    """Images and labels of one split.

    Args:
        folder: holds the batch files, or their folder, or the `.tar.gz`.
        split: "train" or "test".
        layout: `CIFAR10` or `CIFAR100`.

    Returns:
        Images (samples, 3, 32, 32), labels, and class names where the meta file is there; None if
        the folder holds none of it.

    Raises:
        UnreadableFile: a file is damaged, lacks something, or holds something else than data.
    """
    wanted = layout.splits[split]
    for place in (folder / layout.folder, folder):
        if all((place / name).is_file() for name in wanted):
            sources = [place / name for name in (*wanted, layout.meta)]
            return _convert(layout, split, place, [s for s in sources if s.is_file()], _from_files)
    archive = folder / layout.archive
    if archive.is_file():
        return _convert(layout, split, archive, [archive], _from_archive)
    return None


def _convert(
    layout: Layout,
    split: str,
    place: Path,
    sources: list[Path],
    fetch: Callable[[Path, tuple[str, ...], Layout], dict[str, bytes]],
) -> UncheckedSamples:
    """Read the npz made from `sources`, making it first if need be."""

    def build() -> Arrays:
        _log.info("converting %s (%s) once", place, split)
        return _arrays(place, fetch(place, layout.splits[split], layout), split, layout)

    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    arrays = remembered(f"{layout.folder}-{split}", ["cifar", layout, split, *stats], build)
    names = tuple(arrays["class_names"].tolist()) or None
    return UncheckedSamples(arrays["images"], arrays["labels"], names)


def _from_files(place: Path, wanted: tuple[str, ...], layout: Layout) -> dict[str, bytes]:
    contents = {}
    for path in (place / name for name in (*wanted, layout.meta)):
        try:
            if path.is_file():
                if path.stat().st_size > _LARGEST:
                    raise UnreadableFile(f"{path} is too large for a batch")
                contents[path.name] = path.read_bytes()
        except OSError as error:
            raise UnreadableFile(f"{path} cannot be read: {error}") from error
    return contents


def _from_archive(archive: Path, wanted: tuple[str, ...], layout: Layout) -> dict[str, bytes]:
    """Read the members by name, in memory: nothing is unpacked to disk."""
    members = {f"{layout.folder}/{name}": name for name in (*wanted, layout.meta)}
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = members.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > _LARGEST:
                    raise UnreadableFile(f"{archive}: {member.name} is too large for a batch")
                file = tar.extractfile(member)
                contents[name] = file.read() if file else b""
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UnreadableFile(f"{archive} cannot be read: {error}") from error
    for name in wanted:
        if name not in contents:
            raise UnreadableFile(f"{archive} does not hold {layout.folder}/{name}")
    return contents


def _arrays(place: Path, contents: dict[str, bytes], split: str, layout: Layout) -> Arrays:
    images, labels = [], []
    for name in layout.splits[split]:
        batch = load_restricted(contents[name], place / name)
        pixels, classes = batch.get("data"), batch.get(layout.labels)
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (3 * _SIDE * _SIDE,):
            raise UnreadableFile(f"{place / name}: 'data' is not bytes of 32x32 RGB images")
        if not isinstance(classes, list) or not all(
            type(entry) is int and 0 <= entry < 256 for entry in classes
        ):
            raise UnreadableFile(f"{place / name}: '{layout.labels}' is not a list of classes")
        if len(classes) != len(pixels):
            raise UnreadableFile(
                f"{place / name} has {len(pixels)} images, but {len(classes)} labels"
            )
        images.append(pixels.reshape(-1, 3, _SIDE, _SIDE))
        labels.append(np.array(classes, dtype=np.int64))
    names: Any = []
    if layout.meta in contents:
        names = load_restricted(contents[layout.meta], place / layout.meta).get(layout.names)
        if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
            raise UnreadableFile(f"{place / layout.meta}: '{layout.names}' is not a list of names")
    return {
        "images": np.concatenate(images),
        "labels": np.concatenate(labels),
        "class_names": np.array(
            [
                name.decode("utf-8", "replace") if isinstance(name, bytes) else name
                for name in names
            ],
            dtype=np.str_,
        ),
    }


class _StandIn:
    """What a pickle gets in place of the function or class it names."""

    __slots__ = ("value",)

    def __init__(self, *arguments: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        """Keep nothing; defined because a pickle may set any attribute of what lacks it."""


class _Bytes(_StandIn):
    """`_codecs.encode(text, "latin1")`: bytes as Python 3 writes them in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
        return text.encode("latin1")


class _Dtype(_StandIn):
    """`numpy.dtype("u1", ...)`: pixels are unsigned bytes, so no other type is known."""

    __slots__ = ()

    def __init__(self, name: str | bytes, *arguments: Any):
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("it holds an array of something else than unsigned bytes")


class _Array(_StandIn):
    """`numpy.core.multiarray._reconstruct(...)`, then the array's state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


class _Buffer(_StandIn):
    """`numpy.core.numeric._frombuffer(...)`: an array as NumPy writes it in protocol 5."""

    __slots__ = ()

    def __init__(self, raw: Any, dtype: Any, shape: Any, order: Any):
        self.value = _array(raw, dtype, shape, "F" if order == "F" else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> UInt8[np.ndarray, "..."]:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it holds an array without its bytes")
    # reshape checks the shape against the bytes: nothing is allocated for what a shape claims
    return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


_KNOWN: dict[tuple[str, str], type[_StandIn]] = {
    ("_codecs", "encode"): _Bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


class _Unpickler(pickle.Unpickler):
    """Reads data and refuses whatever could run."""

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        try:
            return _KNOWN[module, name]
        except KeyError:
            wish = f"{module}.{name}"[:80]
            raise pickle.UnpicklingError(
                f"it asks for {wish!r}, which no CIFAR batch needs"
            ) from None


def load_restricted(content: bytes, source: Path) -> dict[str, Any]:
    """Unpickle a dict of numbers, text, bytes, lists, dicts and arrays of bytes; refuse the rest.

    Args:
        content: the pickle.
        source: the file it comes from, for the message.

    Returns:
        The entries under text keys.

    Raises:
        UnreadableFile: it is damaged, no dict, or asks for anything else.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            # the unpickler makes room for any place that is named, up to 64 GB
            if opcode.name.endswith("PUT") and int(argument or 0) > len(content):
                raise pickle.UnpicklingError("it asks for more memory than it can need")
        entries = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(entries, dict):
            raise pickle.UnpicklingError("it does not hold a dict")
        # Python 2 wrote the keys as bytes
        return {
            key.decode() if isinstance(key, bytes) else str(key): (
                entry.value if isinstance(entry, _StandIn) else entry
            )
            for key, entry in entries.items()
        }
    except Exception as error:  # a damaged pickle raises nearly any class
        raise UnreadableFile(f"{source} is not a CIFAR batch: {error}") from error
