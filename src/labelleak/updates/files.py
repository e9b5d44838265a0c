"""Opening files of named tensors that a stranger sent: nothing is unpickled, values are read late.

``.safetensors`` files are memory-mapped and only the tensors that are asked for are touched. So are
``.pt`` files; they go through ``torch.load(weights_only=True)``, which runs no code. Of ``.npz``
files, too, one array is read at a time, without pickles.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from labelleak.checks import is_plain, kind_of
from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.storage import check_file, read_json
from labelleak.updates._arrays import read_in_archive, shapes_in_archive
from labelleak.updates._pickled import load_pickled
from labelleak.updates.heads import strip_wrappers
from labelleak.updates.layout import Stored, as_torch
from labelleak.updates.limits import LIMITS, Limits, check_archive, check_header, check_names

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_INDEX = ".index.json"
_ARRAYS = "save arrays by name instead, numpy.savez('update.npz', **arrays)"
REFUSED = {
    **dict.fromkeys(
        (".h5", ".hdf5", ".keras"),
        "weights of Keras: save them as arrays instead, "
        "numpy.savez('update.npz', **{w.path: w.numpy() for w in model.weights})",
    ),
    **dict.fromkeys(
        (".msgpack", ".flax"),
        "parameters of Flax in MessagePack: save them as .safetensors instead, "
        "safetensors.flax.save_file(flax.traverse_util.flatten_dict(params, sep='.'), path)",
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib", ".dill"),
        f"a pickle, and reading it could run its code: {_ARRAYS}, or .safetensors",
    ),
    ".npy": f"one array without a name: {_ARRAYS}",
    **dict.fromkeys(
        (".onnx", ".pb", ".tflite", ".gguf", ".mlmodel"),
        "a network made for inference, which is not read: save the weights of the network that "
        "was trained, as .safetensors, .pt or .npz",
    ),
}
"""What else people have, by its ending, and how to make of it what is read."""

_Shapes = dict[str, tuple[int, ...]]
_Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a file as they are kept.

    Attributes:
        path: The file.
        shapes: Shape of every tensor by the name that is kept, in the file's order.
        read: Reads one by that name.
        largest: Bytes that no tensor can exceed.
        usual: Prefix of the tensors that are meant where nothing else tells; empty for all.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: _Read
    largest: int
    usual: str = ""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file by name: shapes at once, values one at a time when asked for."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    _stored: Mapping[str, Stored]
    _tensors: StoredTensors

    def usual(self) -> "TensorFile":
        """Of several state dicts in the file the one that is usually meant; else all of it."""
        prefix = self._tensors.usual
        stored = {name: at for name, at in self._stored.items() if at.name.startswith(prefix)}
        if len(stored) == len(self._stored):
            return self
        return replace(self, shapes={name: self.shapes[name] for name in stored}, _stored=stored)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU.

        Raises:
            UnreadableFile: Its data cannot be read, or it is no plain tensor of floating-point
                numbers.
        """
        stored = self._stored[name]
        with clear(self.path):
            tensor = self._tensors.read(stored.name)
            if not is_plain(tensor):
                raise UnreadableFile(
                    f"{self.path}: {name!r} is {kind_of(tensor)}: a plain tensor of floating-point "
                    "numbers is needed (16 bits or more)"
                )
            # A tensor may repeat its few numbers without end (stride 0).
            if math.prod(tensor.shape) * tensor.itemsize > self._tensors.largest:
                raise UnreadableFile(f"{self.path}: {name!r} claims to be larger than its file")
            return tensor.detach().permute(stored.axes(tensor.ndim))


def open_tensors(path: Path | str, *, limits: Limits = LIMITS) -> TensorFile:
    """Open a file of named tensors without reading their values.

    Args:
        path: A ``.safetensors`` file; a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file that holds a
            state dict (possibly one level down, under ``"state_dict"`` say); an ``.npz`` file of
            arrays; or the index of shards, ``model.safetensors.index.json``.
        limits: What the file may claim at most.

    Returns:
        Its tensors by the names and with the axes that torch would give them. A prefix that a
        wrapper put on every name is taken off. Of several state dicts the usual one is taken
        (``"model"`` beside ``"model_ema"``), or all of them, each behind its own name.

    Raises:
        UnreadableFile: It does not exist, is damaged, or holds no named tensors, or loading it
            would have to run code; or it is of a format that is not read.
    """
    return by_name(open_stored(path, limits)).usual()


def by_name(tensors: StoredTensors, names: Sequence[str] | None = None) -> TensorFile:
    """The tensors by torch's names, without the prefix of a wrapper.

    Args:
        tensors: As the file keeps them.
        names: What they are called, in the order of the file; None for the names that are kept.
    """
    kept = dict(zip(names or tensors.shapes, tensors.shapes, strict=True))
    plain = as_torch({name: tensors.shapes[key] for name, key in kept.items()})
    bare = strip_wrappers(list(plain))
    stored = {bare[name]: Stored(kept[at.name], at.is_kernel) for name, at in plain.items()}
    shapes = {name: at.shape(tensors.shapes[at.name]) for name, at in stored.items()}
    return TensorFile(tensors.path, shapes, stored, tensors)


def open_stored(path: Path | str, limits: Limits = LIMITS) -> StoredTensors:
    """Open a file, whatever its format, and look at what it claims to hold.

    Raises:
        UnreadableFile: As `open_tensors`.
    """
    path = Path(path)
    with clear(path):
        check_file(path)
        if path.name.lower().endswith(_INDEX):
            return _open_shards(path, limits)
        ending = path.suffix.lower()
        if ending in REFUSED:
            raise UnreadableFile(f"{path}: {ending} files hold {REFUSED[ending]}")
        shapes, read, usual = _open(path, ending, limits)
        check_names(path, list(shapes), limits)
        largest = limits.unpacked_bytes if ending == ".npz" else path.stat().st_size
        return StoredTensors(path, shapes, read, largest, usual)


def _open(path: Path, ending: str, limits: Limits) -> tuple[_Shapes, _Read, str]:
    if ending == ".npz":
        check_archive(path, limits)
        return shapes_in_archive(path), partial(read_in_archive, path), ""
    if ending not in _PICKLED:
        check_header(path, limits)
        return *_open_safetensors(path, limits), ""
    check_archive(path, limits)
    tensors, usual = load_pickled(path, limits)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return shapes, tensors.__getitem__, usual


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """Turn whatever a reader throws at a damaged file into one line about that file."""
    try:
        yield
    except LabelLeakError:
        raise
    except MemoryError:
        raise UnreadableFile(f"{path}: claims more data than this machine has memory") from None
    except Exception as error:
        reason = "".join(char if char.isprintable() else " " for char in str(error)).strip()
        raise UnreadableFile(
            f"{path}: not readable: {reason[:200] or type(error).__name__}"
        ) from None


def _open_safetensors(path: Path, limits: Limits) -> tuple[_Shapes, _Read]:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt", device="cpu")
    names = list(file.keys())
    check_names(path, names, limits)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes, file.get_tensor


def _open_shards(path: Path, limits: Limits) -> StoredTensors:
    """The tensors that an index says which of the files beside it hold.

    Raises:
        UnreadableFile: It is no such index, names files that are elsewhere or of another format,
            or tensors that are not where it says.
    """
    if path.stat().st_size > limits.index_bytes:
        raise UnreadableFile(f"{path}: an index of at most {limits.index_bytes} bytes is read")
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UnreadableFile(f"{path}: is no index of shards: it has no weight_map")
    check_names(path, list(places), limits)
    files = sorted(set(places.values()))
    if len(files) > limits.shards:
        raise UnreadableFile(f"{path}: names {len(files)} files: at most {limits.shards} are read")
    for file in files:
        ending = Path(file).suffix.lower()
        if file != Path(file).name or ending not in (".safetensors", *_PICKLED):
            raise UnreadableFile(
                f"{path}: names {file[:60]!a}: shards are .safetensors or .bin files beside it"
            )
    shards = {file: open_stored(path.parent / file, limits) for file in files}
    for name, file in places.items():
        if name not in shards[file].shapes:
            raise UnreadableFile(f"{path}: {name!r} is not in {file!a}, as it says")
    return StoredTensors(
        path,
        {name: shards[file].shapes[name] for name, file in places.items()},
        lambda name: shards[places[name]].read(name),
        max(shard.largest for shard in shards.values()),
    )
