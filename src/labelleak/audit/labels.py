"""The auditor's own labels, from a text file."""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.errors import UnreadableFile
from labelleak.storage import read_words


def read_labels(path: Path | str, classes: int) -> Int[Tensor, " batch"]:
    """Read labels from a text file: integers separated by spaces, commas or line breaks.

    Args:
        path: The file, UTF-8, with or without a byte order mark, of at most 16 MiB. Empty lines are
            skipped.
        classes: Number of classes C.

    Returns:
        int64, shape (batch,), in the order of the file.

    Raises:
        UnreadableFile: There is no such file, it is larger, or it holds anything but integers from
            0 to C - 1. The message names the line.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("0, 2 2")
        ...     read_labels(path, classes=3).tolist()
        [0, 2, 2]
    """
    labels = []
    for number, word in read_words(path, "labels"):
        # Python refuses to read a number of thousands of digits.
        plain = word.isascii() and word.isdigit() and len(word) <= 18
        if not plain or int(word) >= classes:
            raise UnreadableFile(
                f"{path}, line {number}: {word[:40]!r} is no label: integers from 0 to "
                f"{classes - 1} are needed"
            )
        labels.append(int(word))
    return torch.tensor(labels)
