import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labelleak.lab.datasets.dataset import Dataset, Photographs, _random_crop

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 6), dtype=np.uint8)


def in_memory(**changes):
    arguments = {
        "name": "test",
        "images": torch.from_numpy(PIXELS),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0]),
        "classes": 3,
        "class_names": ("a", "b", "c"),
        "mean": (0.1, 0.5, 0.9),
        "std": (0.2, 1.0, 3.0),
    }
    return Dataset(**(arguments | changes))


def photographs(count=4, width=80, height=60, size=32):
    rng = np.random.default_rng(1)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for _ in range(count)
    ]
    return Photographs(images.__getitem__, count, size)


def lazy_dataset():
    return in_memory(images=photographs(7))


def test_batch_is_normalized_and_in_order():
    inputs, labels = in_memory().batch(torch.tensor([5, 0, 5]))
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.2, 1.0, 3.0])
    expected = (PIXELS[[5, 0, 5]] / 255 - mean[:, None, None]) / std[:, None, None]
    assert inputs.dtype == torch.float32
    assert inputs.numpy() == pytest.approx(expected, abs=1e-6)
    assert labels.tolist() == [2, 0, 2]


def test_batch_leaves_the_pixels_alone():
    dataset = in_memory()
    dataset.batch(torch.arange(7))
    assert torch.equal(dataset.images, torch.from_numpy(PIXELS))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("augmented", [False, True])
def test_stream_is_the_batch_in_pieces(chunk, augmented):
    dataset = lazy_dataset() if augmented else in_memory()
    indices = torch.tensor([3, 3, 1, 0, 6, 2, 3])

    def generator():
        return torch.Generator().manual_seed(5) if augmented else None

    pieces = list(dataset.stream(indices, chunk=chunk, augment=generator()))
    assert all(len(labels) <= chunk for _, labels in pieces)
    inputs, labels = dataset.batch(indices, augment=generator())
    assert torch.equal(torch.cat([piece for piece, _ in pieces]), inputs)
    assert torch.equal(torch.cat([piece for _, piece in pieces]), labels)


def test_stream_of_nothing_is_empty():
    assert list(in_memory().stream(torch.zeros(0, dtype=torch.int64))) == []


def test_stream_decodes_no_more_than_it_has_to():
    opened = []

    def open_image(index):
        opened.append(index)
        return Image.new("RGB", (40, 40))

    dataset = in_memory(images=Photographs(open_image, 7, 32))
    next(iter(dataset.stream(torch.arange(7), chunk=2)))
    assert opened == [0, 1]


def test_shape_length_and_laziness():
    assert in_memory().image_shape == (3, 5, 6)
    assert lazy_dataset().image_shape == (3, 32, 32)
    assert len(in_memory()) == len(lazy_dataset()) == 7
    assert not in_memory().lazy
    assert lazy_dataset().lazy


def test_it_is_frozen_and_can_be_normalized_otherwise():
    dataset = in_memory()
    with pytest.raises(FrozenInstanceError):
        dataset.name = "other"
    other = replace(dataset, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert other.batch(torch.tensor([1]))[0].numpy() == pytest.approx(PIXELS[[1]] / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(6, dtype=torch.int64)}, "7 images, but 6 labels"),
        ({"labels": torch.full((7,), 3)}, "labels run from 3 to 3"),
        ({"labels": torch.full((7,), -1)}, "labels run from -1"),
        ({"mean": (0.0,)}, "each of 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"class_names": ("a", "b")}, "2 class names, but 3 classes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        in_memory(**changes)


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError, match="7 samples"):
        lazy_dataset().batch(torch.tensor([0, index]))


def test_images_in_memory_are_not_augmented():
    with pytest.raises(ValueError, match="leave augment out"):
        in_memory().batch(torch.tensor([0]), augment=torch.Generator())


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk"):
        next(in_memory().stream(torch.tensor([0]), chunk=0))


def test_the_center_is_cut_out_of_a_photograph_of_the_right_size_untouched():
    pixels = np.random.default_rng(2).integers(0, 256, (256, 301, 3), dtype=np.uint8)
    source = Photographs(lambda _: Image.fromarray(pixels), 1, 224)
    expected = pixels[16:240, 38:262].transpose(2, 0, 1)
    assert np.array_equal(source.decode(0).numpy(), expected)


def test_other_sizes_are_resized_and_cut_at_the_center():
    # a horizontal ramp, 512 wide: the center 448 columns are 0.125 .. 0.875 of the shorter side
    ramp = np.tile(np.linspace(0, 255, 512)[None, :, None], (512, 1, 3)).round().astype(np.uint8)
    source = Photographs(lambda _: Image.fromarray(ramp), 1, 224)
    columns = source.decode(0)[0, 100].double().numpy()
    expected = np.interp(32 + 2 * np.arange(224) + 0.5, np.arange(512), np.linspace(0, 255, 512))
    assert columns == pytest.approx(expected, abs=1)


def test_augmentation_is_seeded_and_differs_from_draw_to_draw():
    source = photographs(1)

    def crops(seed):
        generator = torch.Generator().manual_seed(seed)
        return [source.decode(0, generator) for _ in range(4)]

    assert all(torch.equal(a, b) for a, b in zip(crops(0), crops(0), strict=True))
    assert len({crop.numpy().tobytes() for crop in crops(0) + crops(1)}) == 8


def test_half_of_the_augmented_photographs_are_flipped():
    ramp = np.tile(np.arange(200)[None, :, None], (200, 1, 3)).astype(np.uint8)
    source = Photographs(lambda _: Image.fromarray(ramp), 1, 32)
    generator = torch.Generator().manual_seed(0)
    crops = [source.decode(0, generator)[0, 0] for _ in range(200)]
    flipped = sum(bool(row[0] > row[-1]) for row in crops)
    assert 70 <= flipped <= 130


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**40))
def test_random_crops_lie_in_the_image_and_have_the_usual_size_and_shape(width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    (left, top, right, bottom), _ = _random_crop(width, height, generator)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    side = min(width, height)
    if not math.isclose(right - left, side) or not math.isclose(bottom - top, side):
        assert 3 / 4 - 1e-6 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-6
        assert 0.08 - 1e-6 <= (right - left) * (bottom - top) / (width * height) <= 1 + 1e-6


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**40))
def test_photographs_of_any_size_come_out_square(width, height, seed):
    source = Photographs(lambda _: Image.new("RGB", (width, height), (9, 80, 200)), 1, 16)
    for augment in (None, torch.Generator().manual_seed(seed)):
        pixels = source.decode(0, augment)
        assert pixels.shape == (3, 16, 16)
        assert pixels.flatten(1).unique(dim=1).tolist() == [[9], [80], [200]]


def test_every_photograph_takes_the_same_number_of_draws():
    states = []
    for width in (1, 80):
        generator = torch.Generator().manual_seed(0)
        photographs(1, width=width).decode(0, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)
