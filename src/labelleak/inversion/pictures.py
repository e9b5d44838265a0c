"""Images as PNG files, one by one or in a grid."""

import io
import math

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.errors import LabelLeakError


def png(image: Float[Tensor, "channels height width"]) -> bytes:
    """Encode an image as a PNG file.

    Args:
        image: Pixels from 0 to 1, one channel (gray) or three (red, green, blue).

    Returns:
        The content of the file, 8 bits per pixel and channel.

    Raises:
        LabelLeakError: Pillow is not installed.
        ValueError: The image has neither one nor three channels.

    Examples:
        >>> png(torch.zeros(1, 2, 2))[1:4]
        b'PNG'
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise LabelLeakError("pictures need Pillow: pip install 'labelleak[images]'") from None
    if image.shape[0] not in (1, 3):
        raise ValueError(f"{image.shape[0]} channels: a picture has one or three")
    pixels = image.detach().cpu().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def grid(
    images: Float[Tensor, "batch channels height width"], columns: int | None = None, gap: int = 2
) -> Float[Tensor, "channels rows_high columns_wide"]:
    """Arrange images in a grid, row by row.

    Args:
        images: Pixels from 0 to 1.
        columns: Number of images in a row; None for about as many columns as rows.
        gap: Number of white pixels between the images and around the grid.

    Returns:
        The grid as one image, white where there is no image.

    Examples:
        >>> grid(torch.zeros(5, 1, 28, 28), columns=3).shape
        torch.Size([1, 62, 92])
    """
    number, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    size = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    whole = images.new_ones(size)
    for place, image in enumerate(images):
        top = place // columns * (height + gap) + gap
        left = place % columns * (width + gap) + gap
        whole[:, top : top + height, left : left + width] = image
    return whole
