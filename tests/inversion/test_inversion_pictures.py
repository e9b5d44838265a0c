import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from labelleak.errors import LabelLeakError
from labelleak.inversion import grid, png


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_pixels_in_eight_bits(channels):
    image = torch.linspace(0, 1, channels * 6 * 5).reshape(channels, 6, 5)
    with Image.open(io.BytesIO(png(image))) as picture:
        array = np.asarray(picture)
    expected = (image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(array, expected[..., 0] if channels == 1 else expected)


def test_what_is_outside_zero_to_one_is_cut_off():
    with Image.open(io.BytesIO(png(torch.tensor([[[-1.0, 2.0]]])))) as picture:
        assert np.asarray(picture).tolist() == [[0, 255]]


def test_a_picture_has_one_or_three_channels():
    with pytest.raises(ValueError, match="2 channels"):
        png(torch.zeros(2, 3, 3))


def test_a_grid_holds_every_image_at_its_place():
    images = torch.rand((5, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    whole = grid(images, columns=2, gap=1)
    assert whole.shape == (3, 3 * 5 + 1, 2 * 7 + 1)
    for place in range(5):
        top, left = place // 2 * 5 + 1, place % 2 * 7 + 1
        assert torch.equal(whole[:, top : top + 4, left : left + 6], images[place])
    assert torch.equal(whole[:, 11:15, 8:14], torch.ones(3, 4, 6))
    assert torch.equal(whole[:, :, 0], torch.ones(3, 16))
    assert grid(images, gap=0).shape == (3, 2 * 4, 3 * 6)


def test_a_missing_pillow_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(LabelLeakError, match=r"pip install 'labelleak\[images\]'"):
        png(torch.zeros(1, 2, 2))
