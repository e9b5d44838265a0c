"""Data sets from the Hugging Face hub, through the library `datasets` (extra `data`)."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets.catalog import HubSource
from labelleak.lab.datasets.dataset import Photographs, UncheckedSamples
from labelleak.lab.datasets.folders import decode_all

if TYPE_CHECKING:
    from PIL import Image


def read(
    source: HubSource, split: str, *, image_shape: tuple[int, int, int], small: int, size: int
) -> UncheckedSamples:
    """Images and labels of one split, from the hub or from the cache that `datasets` keeps.

    Args:
        source: repository and columns.
        split: "train" or "test".
        image_shape: (channels, height, width) of every image.
        small: images up to this side, in pixels, are decoded at once.
        size: side of the square cut out of larger images, which are decoded on demand.

    Raises:
        DataNotFound: `datasets` is not installed, or cannot get the data; the reason is given.
        UnreadableFile: an image is damaged or has another size.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataNotFound(
            "downloading needs the library datasets: pip install 'labelleak[data]'"
        ) from error
    name = source.splits[split]
    # With `data_files` only those are downloaded, and the check for the other splits must be off.
    options = (
        {"data_files": {name: source.files[name]}, "verification_mode": "no_checks"}
        if source.files
        else {}
    )
    try:
        rows = datasets.load_dataset(source.path, split=name, **options)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise DataNotFound(f"{source.path} could not be downloaded: {reason}") from error
    labels = np.asarray(rows[source.label][:], dtype=np.int64)
    class_names = tuple(rows.features[source.label].names)
    rows = rows.select_columns([source.image])
    opener = partial(open_row, rows, source.image, "L" if image_shape[0] == 1 else "RGB")
    if max(image_shape) > small:
        return UncheckedSamples(Photographs(opener, len(rows), size), labels, class_names)
    images = decode_all(opener, f"{source.path}, image {{}}".format, len(rows), image_shape)
    return UncheckedSamples(images, labels, class_names)


def open_row(rows: Any, column: str, mode: str, index: int) -> "Image.Image":
    """Decode one image of a data set of `datasets`.

    Args:
        rows: The data set.
        column: The column of the images.
        mode: "RGB" or "L" (gray), what the pixels are converted to.
        index: Which row.

    Raises:
        UnreadableFile: It is damaged.
    """
    try:
        image: Image.Image = rows[index][column]
        return image.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFile(f"image {index} is not readable: {error}") from error
