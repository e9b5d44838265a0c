"""IDX files, the format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist/)."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from labelleak.errors import UnreadableFile
from labelleak.lab.datasets.dataset import UncheckedSamples

# A header may claim anything; MNIST has 45 MB, its largest relative (EMNIST) 610 MB.
_LARGEST = 2 * 1024**3
_PREFIXES = {"train": "train", "test": "t10k"}


def read(folder: Path, split: str) -> UncheckedSamples | None:
    """Images and labels of one split.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, or `t10k-...`; each may
            also be spelled `train-images.idx3-ubyte` and may be packed (`.gz`).
        split: "train" or "test".

    Returns:
        Images (samples, 1, height, width) and labels; None if the folder has no such images.

    Raises:
        UnreadableFile: a wrong magic number, a truncated file, too many or too few labels.
    """
    prefix = _PREFIXES[split]
    images_path = _find(folder, f"{prefix}-images", "idx3-ubyte")
    if images_path is None:
        return None
    labels_path = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    if labels_path is None:
        raise UnreadableFile(f"{images_path} has no {prefix}-labels-idx1-ubyte beside it")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise UnreadableFile(
            f"{images_path} has {len(images)} images, but {labels_path.name} {len(labels)} labels"
        )
    return UncheckedSamples(images[:, None], labels.astype(np.int64), None)


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    spellings = (f"{stem}{join}{kind}{pack}" for pack in ("", ".gz") for join in "-.")
    return next((path for name in spellings if (path := folder / name).is_file()), None)


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes in one IDX file.

    Args:
        path: the file; `.gz` is unpacked.
        dimensions: how many axes it must have.

    Raises:
        UnreadableFile: it is something else, or its length is not what its header says.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise UnreadableFile(
                    f"{path} is not an IDX file of bytes with {dimensions} dimension(s): "
                    f"it starts with {header[:4].hex() or 'nothing'}, not 000008{dimensions:02x}"
                )
            shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
            size = math.prod(shape)
            if size > _LARGEST:
                raise UnreadableFile(f"{path} claims to hold {size} bytes: too many, not read")
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}") from error
    if len(body) != size:
        found = f"only {len(body)}" if len(body) < size else "more"
        raise UnreadableFile(f"{path} should hold {size} bytes after its header, but has {found}")
    return np.frombuffer(body, np.uint8).reshape(shape)
