import os

import numpy as np
import pytest
from PIL import Image

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets import folders
from labelleak.lab.datasets.dataset import Photographs

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def read(folder, split="train", **changes):
    options = {"image_shape": (3, 8, 8), "small": 64, "size": None, "undivided": False}
    return folders.read(folder, split, **(options | changes))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for index, name in enumerate(["train/b/2.png", "train/b/10.PNG", "train/a/x.png"]):
        save(root / name, PIXELS[index])
    save(root / "val/b/v.png", PIXELS[3])
    save(root / "val/c/v.png", PIXELS[4])
    (root / "train/b/notes.txt").write_text("no image")
    (root / "train/empty").mkdir()
    return root


def test_sorted_folders_are_the_classes_of_all_splits(tree):
    images, labels, names = read(tree)
    assert names == ("a", "b", "c")
    assert labels.tolist() == [0, 1, 1]
    assert np.array_equal(images, PIXELS[[2, 1, 0]].transpose(0, 3, 1, 2))
    images, labels, names = read(tree, "test")
    assert names == ("a", "b", "c")
    assert labels.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_the_held_out_split_has_several_names(tree, name):
    (tree / "val").rename(tree / name)
    assert read(tree, "test").labels.tolist() == [1, 2]


def test_missing_splits_and_folders_are_not_found(tree, tmp_path):
    assert read(tmp_path) is None
    assert read(tmp_path / "nowhere") is None
    assert read(tree / "val") is None
    (tree / "val").rename(tree / "other")
    assert read(tree, "test") is None


def test_class_folders_without_splits(tree):
    samples = read(tree / "train", undivided=True)
    assert samples.class_names == ("a", "b")
    assert read(tree / "train", "test", undivided=True) is None


def test_tiny_imagenet_as_it_is_distributed(tmp_path):
    for index, name in enumerate(["n02/images/n02_0", "n01/images/n01_0", "n01/images/n01_1"]):
        save(tmp_path / "train" / f"{name}.png", PIXELS[index])
    (tmp_path / "train/n01/n01_boxes.txt").write_text("n01_0.png\t0\t0\t62\t62")
    for index in range(3):
        save(tmp_path / f"val/images/val_{index}.png", PIXELS[index + 5])
    (tmp_path / "val/val_annotations.txt").write_text(
        "val_0.png\tn02\t0\t0\t9\t9\nval_1.png\tn01\t0\t0\t9\t9\nval_2.png\tn02\t0\t0\t9\t9\n"
    )
    save(tmp_path / "test/images/test_0.png", PIXELS[8])
    (tmp_path / "words.txt").write_text("n00\tnothing\nn01\tfish, tail\nn02\tdog\n")
    images, labels, names = read(tmp_path)
    assert names == ("fish, tail", "dog")
    assert labels.tolist() == [0, 0, 1]
    assert np.array_equal(images, PIXELS[[1, 2, 0]].transpose(0, 3, 1, 2))
    images, labels, _ = read(tmp_path, "test")
    assert labels.tolist() == [0, 1, 1]
    assert np.array_equal(images, PIXELS[[6, 5, 7]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("line", ["../../secret.png\tn01", "val_0.png", "\tn01"])
def test_annotations_that_are_none_are_refused(tmp_path, line):
    (tmp_path / "val").mkdir()
    (tmp_path / "val/val_annotations.txt").write_text(line)
    with pytest.raises(UnreadableFile, match="image name, a tab and a class"):
        read(tmp_path, "test")


def test_an_annotated_image_that_is_missing(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val/val_annotations.txt").write_text("val_0.png\tn01\n")
    with pytest.raises(UnreadableFile, match=r"val_0\.png"):
        read(tmp_path, "test")


def test_class_names_from_a_table(tree):
    (tree / "classes.txt").write_text("a\tant, emmet\nc\tcat\nbroken line\n")
    assert read(tree).class_names == ("ant, emmet", "b", "cat")


def test_gray_images_are_read_as_gray_and_as_color(tmp_path):
    save(tmp_path / "train/a/0.png", PIXELS[0, ..., 0])
    assert np.array_equal(read(tmp_path, image_shape=(1, 8, 8)).images[0, 0], PIXELS[0, ..., 0])
    assert np.array_equal(read(tmp_path).images[0, 2], PIXELS[0, ..., 0])


def test_small_images_are_decoded_once_until_a_file_changes(tree, monkeypatch):
    opened = []
    original = folders.open_file
    monkeypatch.setattr(
        folders, "open_file", lambda paths, *rest: opened.append(1) or original(paths, *rest)
    )
    first = read(tree).images
    assert len(opened) == 3
    assert np.array_equal(read(tree).images, first)
    assert len(opened) == 3
    os.utime(tree / "train/a/x.png", (1, 1))
    read(tree)
    assert len(opened) == 6
    save(tree / "train/a/y.png", PIXELS[7])
    assert len(read(tree).images) == 4


@pytest.mark.parametrize(
    ("first", "size", "expected"), [(64, None, "array"), (65, None, 224), (65, 96, 96), (8, 16, 16)]
)
def test_the_first_image_decides_where_no_size_is_known(tmp_path, first, size, expected):
    save(tmp_path / "train/a/0.png", np.zeros((8, first, 3), np.uint8))
    images = read(tmp_path, image_shape=None, size=size).images
    if expected == "array":
        assert images.shape == (1, 3, 8, 64)
    else:
        assert images.shape == (1, 3, expected, expected)
        assert isinstance(images, Photographs)
        assert images.decode(0).shape == (3, expected, expected)


def test_photographs_are_opened_only_when_asked_for(tmp_path):
    save(tmp_path / "train/a/0.png", PIXELS[0])
    (tmp_path / "train/a/1.png").write_bytes(b"no image")
    images = read(tmp_path, image_shape=(3, 224, 224)).images
    assert images.decode(0).shape == (3, 224, 224)
    with pytest.raises(UnreadableFile, match=r"1\.png is not a readable image"):
        images.decode(1)


def other_format(path):
    """An image, but of a format whose decoder is not to be reached by files of this name."""
    Image.fromarray(PIXELS[0]).save(path, format="TIFF")


def cut(path):
    save(path, PIXELS[0])
    path.write_bytes(path.read_bytes()[:80])


@pytest.mark.parametrize("write", [other_format, cut, lambda path: path.write_bytes(b"")])
def test_what_is_no_image_is_refused(tree, write):
    write(tree / "train/a/x.png")
    with pytest.raises(UnreadableFile, match=r"x\.png is not a readable image"):
        read(tree)


def test_images_larger_than_any_photograph_are_refused(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UnreadableFile, match="not a readable image"):
        read(tree)


def test_images_of_another_size_are_refused(tree):
    save(tree / "train/a/x.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(UnreadableFile, match=r"x\.png has 9x8 pixels, not 8x8"):
        read(tree)


def test_without_pillow_the_message_says_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataNotFound, match="pip install"):
        read(tree)
