"""Logits and targets of a 1x1 convolution, where every pixel is a sample."""

from jaxtyping import Float
from torch import Tensor


def by_pixel(
    logits: Float[Tensor, "samples outputs *size"], targets: Tensor
) -> tuple[Float[Tensor, "pixels outputs"], Tensor]:
    """Logits in rows, and the targets that belong to them.

    Args:
        logits: One map for each class or label, shape (samples, outputs, *size).
        targets: One map of class indices, shape (samples, *size); or of zeros and ones for each
            label, in the shape of the logits.

    Returns:
        A row of logits for every pixel, and its targets likewise; logits that are rows already
        stay as they are, and so do targets that do not fit.
    """
    if logits.ndim <= 2:
        return logits, targets
    if targets.shape == logits.shape:
        targets = targets.movedim(1, -1).flatten(0, -2)
    elif targets.shape == (len(logits), *logits.shape[2:]):
        targets = targets.flatten()
    return logits.movedim(1, -1).flatten(0, -2), targets
