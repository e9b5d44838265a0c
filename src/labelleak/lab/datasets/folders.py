"""Image data with one folder per class: ImageNet, Tiny-ImageNet, and any user's own images."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets.cache import Arrays, remembered
from labelleak.lab.datasets.dataset import Photographs, UncheckedSamples

if TYPE_CHECKING:
    from PIL import Image

_log = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"}
# Named, so that no file can choose a decoder that starts another program (EPS does).
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
_SPLIT_FOLDERS = {"train": ("train",), "test": ("val", "valid", "validation", "test")}
_NAME_FILES = ("classes.txt", "words.txt")
_ANNOTATIONS = "val_annotations.txt"

_Listing = list[tuple[str, Path]]


def read(
    folder: Path,
    split: str,
    *,
    image_shape: tuple[int, int, int] | None,
    small: int,
    size: int | None,
    undivided: bool,
) -> UncheckedSamples | None:
    """Images and labels of one split; the sorted class folders give the class indices.

    Understood are `train/<class>/*.JPEG` and `val/<class>/*.JPEG` (jpg, png, bmp, webp, ppm too;
    the held-out split is the first of val, valid, validation and test), and Tiny-ImageNet as it is
    distributed: `train/<class>/images/`, `val/images/` with `val/val_annotations.txt`. Names of
    classes are taken from `classes.txt` or `words.txt` (folder, tab, name), else from the folders.

    Args:
        folder: holds the folders of the splits.
        split: "train" or "test".
        image_shape: (channels, height, width) that every image must have; None: that of the first.
        small: images up to this side, in pixels, are decoded at once and cached.
        size: side of the square cut out of larger images, which are decoded on demand; None: 224.
            With `image_shape` None, a given size makes small images be decoded on demand, too.
        undivided: the class folders may also be in `folder` itself; all is "train" then.

    Returns:
        Images, labels and class names; None if the folder has no such folders.

    Raises:
        DataNotFound: Pillow is not installed.
        UnreadableFile: a file is not an image, or not of the right size.
    """
    found: dict[str, _Listing] = {}
    for part, names in _SPLIT_FOLDERS.items():
        listings = (_list_split(folder / name) for name in names)
        # the first that exists: beside a labeled val, the test folder often has no labels
        if listing := next(filter(None, listings), None):
            found[part] = listing
    if not found and undivided and (listing := _list_split(folder)):
        found["train"] = listing
    if split not in found:
        return None
    # over all splits: a class without held-out images keeps its index
    classes = sorted({name for listing in found.values() for name, _ in listing})
    index = {name: number for number, name in enumerate(classes)}
    paths = [path for _, path in found[split]]
    labels = np.array([index[name] for name, _ in found[split]], dtype=np.int64)
    if image_shape is None:
        width, height = open_file(paths, "RGB", 0).size
        image_shape = (3, height, width)
        lazy = size is not None or max(width, height) > small
    else:
        lazy = max(image_shape) > small
    images = (
        Photographs(partial(open_file, paths, "RGB"), len(paths), size or 224)
        if lazy
        else _decoded(f"{folder.name}-{split}", folder, paths, image_shape)
    )
    return UncheckedSamples(images, labels, _class_names(folder, classes))


def _list_split(folder: Path) -> _Listing:
    """(class, image) pairs, sorted; empty if the folder has no class folders with images."""
    if not folder.is_dir():
        return []
    if (folder / _ANNOTATIONS).is_file():
        return _list_annotated(folder)
    pairs: _Listing = []
    for class_folder in sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir()):
        images = _list_images(class_folder) or _list_images(class_folder / "images")
        pairs.extend((class_folder.name, path) for path in images)
    return pairs


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return [folder / name for name in names if os.path.splitext(name)[1].lower() in _SUFFIXES]


def _list_annotated(folder: Path) -> _Listing:
    """Tiny-ImageNet's val: all images in one folder, and a table with a class for each."""
    table = folder / _ANNOTATIONS
    pairs: _Listing = []
    for line in table.read_text("utf-8", "replace").splitlines():
        name, _, rest = line.partition("\t")
        class_name = rest.partition("\t")[0]
        if not name or not class_name or Path(name).name != name:
            raise UnreadableFile(f"{table}: {line[:60]!r} is not an image name, a tab and a class")
        pairs.append((class_name, folder / "images" / name))
    return sorted(pairs)


def _class_names(folder: Path, classes: list[str]) -> tuple[str, ...]:
    for file in (folder / name for name in _NAME_FILES):
        if file.is_file():
            lines = file.read_text("utf-8", "replace").splitlines()
            names = dict(line.split("\t", 1) for line in lines if "\t" in line)
            return tuple(names.get(name, name).strip() for name in classes)
    return tuple(classes)


def _decoded(
    name: str, folder: Path, paths: list[Path], image_shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "samples channels height width"]:
    mode = "L" if image_shape[0] == 1 else "RGB"

    def build() -> Arrays:
        _log.info("decoding %d images of %s once", len(paths), folder)
        opener = partial(open_file, paths, mode)
        return {"images": decode_all(opener, paths.__getitem__, len(paths), image_shape)}

    try:
        stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    except OSError as error:
        raise UnreadableFile(f"an image of {folder} is missing: {error}") from error
    listing = ((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return remembered(name, ["folder", image_shape, *listing], build)["images"]


def open_file(paths: list[Path], mode: str, index: int) -> "Image.Image":
    """Decode one image file.

    Args:
        paths: the files.
        mode: "RGB" or "L" (gray), what the pixels are converted to.
        index: which file.

    Raises:
        DataNotFound: Pillow is not installed.
        UnreadableFile: it is not an image of a known format, or a broken one.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataNotFound(
            "image folders are read with Pillow: pip install 'labelleak[data]'"
        ) from error
    try:
        with Image.open(paths[index], formats=_FORMATS) as image:
            return image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableFile(f"{paths[index]} is not a readable image: {error}") from error


def decode_all(
    open_image: "Callable[[int], Image.Image]",
    name_of: Callable[[int], object],
    count: int,
    image_shape: tuple[int, int, int],
) -> UInt8[np.ndarray, "samples channels height width"]:
    """Decode images that all have one size.

    Args:
        open_image: gives image number i, in the mode that fits the channels.
        name_of: what to call image number i in a message.
        count: number of images.
        image_shape: (channels, height, width) that each must have.

    Raises:
        UnreadableFile: an image has another size.
    """
    channels, height, width = image_shape
    pixels = np.empty((count, *image_shape), dtype=np.uint8)
    for index in range(count):
        image = open_image(index)
        if image.size != (width, height):
            raise UnreadableFile(
                f"{name_of(index)} has {image.width}x{image.height} pixels, not {width}x{height}"
            )
        pixels[index] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    return pixels
