"""Data sets of the user's own in the data folder: image folders, arrays, Hugging Face data sets.

Each is told from others by its name in there: ``folder:birds``, ``npz:birds``, ``hf:birds``.
"""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets.dataset import Dataset, Photographs, UncheckedSamples
from labelleak.lab.datasets.folders import decode_all
from labelleak.lab.datasets.hub import open_row

FORMS = ("folder", "npz", "hf")
"""What may stand before the colon in a name."""

_HELD_OUT = ("test", "val", "valid", "validation")
# Names of arrays by split: of labelleak's sample and MedMNIST, and of Keras.
_INPUTS = ("{}_images", "x_{}", "{}_inputs")
_LABELS = ("{}_labels", "y_{}", "{}_labels")
_TOKENS = "input_ids"


def check_own_name(name: str) -> None:
    """Refuse a name that leads out of the data folder.

    Args:
        name: ``folder:NAME``, ``npz:NAME`` or ``hf:NAME``.

    Raises:
        ValueError: It is empty, absolute, or has ``..`` in it.
    """
    form, _, own = name.partition(":")
    parts = own.split("/")
    if not all(parts) or ".." in parts or "\\" in own or ":" in own or "\0" in own:
        raise ValueError(
            f"{name!r}: write {form}:NAME, where NAME is below the data folder (--data-dir)"
        )


def place_of(name: str, root: Path | str | None) -> tuple[Path, str]:
    """Where a data set of the user's own is, and its name for records and files.

    Args:
        name: As in `check_own_name`.
        root: The data folder.

    Returns:
        The path, and a name without separators.

    Raises:
        DataNotFound: There is no data folder, or nothing of that name in it.
        ValueError: The name leads out of the folder.
    """
    check_own_name(name)
    form, _, own = name.partition(":")
    if root is None:
        raise DataNotFound(
            f"data set {name!r} is looked for in the data folder: give --data-dir or LABELLEAK_DATA"
        )
    path = Path(root).expanduser() / (f"{own}.npz" if form == "npz" else own)
    if not path.exists():
        raise DataNotFound(f"data set {name!r} is not at {path}")
    return path, f"{form}-{own.replace('/', '-')}"


def read_npz(path: Path, split: str, name: str) -> Dataset:
    """One split of a file of arrays.

    Args:
        path: The file, with ``train_images`` and ``train_labels``, and for the held-out split the
            same with ``test``, ``val``, ``valid`` or ``validation``; or as Keras has them,
            ``x_train`` and ``y_train``. Images are uint8, shape (samples, height, width), with
            1 or 3 channels last or first; other inputs are floating-point numbers or tokens (any
            integers but uint8), shape (samples, ...). Labels are integers, shape (samples,) or
            (samples, 1).
        split: "train" or "test".
        name: Name of the data set.

    Returns:
        The data set. Images are normalized by the mean and standard deviation of the split
        ``train``; other inputs go to the network as they are.

    Raises:
        DataNotFound: The file has no such split.
        UnreadableFile: It is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {part: _split_of(arrays, part) for part in ("train", "test")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableFile(f"{path}: is no file of arrays: {error}") from None
    if found[split] is None:
        raise DataNotFound(f"{path}: holds no {split}_images and {split}_labels")
    inputs, labels = found[split] or (np.empty(0), np.empty(0))
    classes = max(int(part[1].max()) + 1 for part in found.values() if part and len(part[1]))
    statistics = (found["train"] or (inputs, labels))[0]
    return _dataset_of(name, path, inputs, labels, classes, None, statistics)


def _split_of(arrays: Any, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    words = ("train",) if split == "train" else _HELD_OUT
    for word in words:
        for inputs, labels in zip(_INPUTS, _LABELS, strict=True):
            pair = inputs.format(word), labels.format(word)
            if all(one in arrays for one in pair):
                return arrays[pair[0]], arrays[pair[1]].reshape(-1)
    return None


def _dataset_of(
    name: str,
    path: Path,
    inputs: np.ndarray,
    labels: np.ndarray,
    classes: int,
    class_names: tuple[str, ...] | None,
    statistics: np.ndarray,
) -> Dataset:
    """Arrays as a data set."""
    if len(inputs) != len(labels) or not len(labels):
        raise UnreadableFile(f"{path}: has {len(inputs)} inputs and {len(labels)} labels")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UnreadableFile(f"{path}: labels must be integers, 0 and above")
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if inputs.dtype == np.uint8:
        images, reference = _channels_first(path, inputs), _channels_first(path, statistics)
        scaled = reference.reshape(*reference.shape[:2], -1).astype(np.float32) / 255
        mean = tuple(scaled.mean(axis=(0, 2)).tolist())
        std = tuple(max(1e-3, value) for value in scaled.std(axis=(0, 2)).tolist())
        content: Tensor = torch.from_numpy(images)
    elif inputs.dtype.kind in "iu":
        content = torch.from_numpy(inputs.astype(np.int64))
    elif inputs.dtype.kind == "f" and np.isfinite(inputs).all():
        content = torch.from_numpy(inputs.astype(np.float32))
    else:
        raise UnreadableFile(f"{path}: inputs of {inputs.dtype} must be finite numbers")
    target = torch.from_numpy(labels.astype(np.int64))
    return Dataset(name, content, target, classes, class_names, mean, std)


def _channels_first(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return np.ascontiguousarray(images)
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise UnreadableFile(f"{path}: images of shape {images.shape} have neither 1 nor 3 channels")


def read_hf(
    path: Path, split: str, name: str, *, small: int, size: int | None
) -> UncheckedSamples | Dataset:
    """One split of a data set that Hugging Face `datasets` has saved (`save_to_disk`).

    Args:
        path: Its folder.
        split: "train" or "test".
        name: Name of the data set.
        small: Images up to this side, in pixels, are decoded at once.
        size: Side of the square cut out of larger images; None: 224.

    Returns:
        Of a column of images the samples; of a column ``input_ids`` the tokens as a data set,
        padded with 0 to the longest. Labels are the column ``label`` or ``labels``.

    Raises:
        DataNotFound: `datasets` is not installed, or there is no such split.
        UnreadableFile: It is no such data set, or lacks these columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataNotFound(
            "reading it needs the library datasets: pip install 'labelleak[data]'"
        ) from error
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableFile(f"{path}: is no saved data set of `datasets`: {reason}") from None
    rows = _rows_of(found, split, path)
    features = rows.features
    label = next((column for column in ("label", "labels") if column in features), None)
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if label is None or not (images or _TOKENS in features):
        raise UnreadableFile(
            f"{path}: has the columns {', '.join(features)}; needed are label or labels, and "
            f"images or {_TOKENS}"
        )
    labels = np.asarray(rows[label][:], dtype=np.int64)
    class_names = tuple(getattr(features[label], "names", None) or ()) or None
    if not images:
        classes = len(class_names) if class_names else int(labels.max()) + 1
        tokens = _padded(rows[_TOKENS][:])
        return _dataset_of(name, path, tokens, labels, classes, class_names, tokens)
    return _images_of(rows.select_columns(images[:1]), images[0], labels, class_names, small, size)


def _rows_of(found: Any, split: str, path: Path) -> Any:
    if not hasattr(found, "keys"):
        if split == "train":
            return found
        raise DataNotFound(f"{path}: has no splits, and so no held-out one")
    for word in ("train",) if split == "train" else _HELD_OUT:
        if word in found:
            return found[word]
    raise DataNotFound(f"{path}: has the splits {', '.join(found)}, and no {split}")


def _padded(tokens: list[list[int]]) -> np.ndarray:
    padded = np.zeros((len(tokens), max(map(len, tokens), default=0)), dtype=np.int64)
    for row, one in zip(padded, tokens, strict=True):
        row[: len(one)] = one
    return padded


def _images_of(
    rows: Any,
    column: str,
    labels: np.ndarray,
    class_names: tuple[str, ...] | None,
    small: int,
    size: int | None,
) -> UncheckedSamples:
    names = class_names or tuple(map(str, range(int(labels.max()) + 1)))
    opener = partial(open_row, rows, column, "RGB")
    width, height = opener(0).size
    if size is not None or max(width, height) > small:
        return UncheckedSamples(Photographs(opener, len(rows), size or 224), labels, names)
    pixels = decode_all(opener, "image {}".format, len(rows), (3, height, width))
    return UncheckedSamples(pixels, labels, names)
