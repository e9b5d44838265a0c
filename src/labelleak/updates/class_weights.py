"""The class weights of a client's loss, from a text file."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.storage import read_numbers


def read_class_weights(path: Path | str, what: str = "class weights") -> Float[Tensor, " classes"]:
    """Read class weights from a text file: numbers separated by spaces, commas or line breaks.

    Args:
        path: The file, UTF-8, with or without a byte order mark. Empty lines are skipped.
        what: What they are, for messages.

    Returns:
        float64, shape (classes,), in the order of the file.

    Raises:
        UnreadableFile: There is no such file, or it holds anything but positive finite numbers.
            The message names the line.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "weights.txt")
        ...     _ = path.write_text("0.5, 2 1e1")
        ...     read_class_weights(path).tolist()
        [0.5, 2.0, 10.0]
    """
    weights = read_numbers(path, what, what.rstrip("s"), allows_zero=False)
    return torch.tensor(weights, dtype=torch.float64)
