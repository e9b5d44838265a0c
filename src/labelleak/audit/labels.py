"""The auditor's own labels, from a text file."""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.errors import UnreadableFile
from labelleak.storage import read_words


def read_label_sets(path: Path | str, labels: int) -> Int[Tensor, "batch labels"]:
    r"""Read zeros and ones from a text file: a line for every sample, a number for every label.

    Args:
        path: The file, as of `read_labels`; -1 stands for a label that is left out.
        labels: Number of labels.

    Returns:
        int64, shape (batch, labels), in the order of the file.

    Raises:
        UnreadableFile: There is no such file, it is larger, or a line holds anything but as many
            zeros and ones. The message names the line.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("0 1 1\n1 0 0")
        ...     read_label_sets(path, labels=3).tolist()
        [[0, 1, 1], [1, 0, 0]]
    """
    rows: dict[int, list[int]] = {}
    for number, word in read_words(path, "labels"):
        if word not in ("0", "1", "-1"):
            raise UnreadableFile(
                f"{path}, line {number}: {word[:40]!r} is none of 0 and 1 (or -1, left out)"
            )
        rows.setdefault(number, []).append(int(word))
    for number, row in rows.items():
        if len(row) != labels:
            raise UnreadableFile(
                f"{path}, line {number}: {len(row)} numbers for {labels} labels: a line has a 0 or "
                "1 for each"
            )
    return torch.tensor(list(rows.values()))


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
