import gzip
import struct

import numpy as np
import pytest

from labelleak.errors import UnreadableFile
from labelleak.lab.datasets import idx

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = bytes([3, 1, 4, 1, 5])


def images_file(count=5):
    return struct.pack(">IIII", 0x803, count, 4, 3) + PIXELS.tobytes()


def labels_file(labels=LABELS):
    return struct.pack(">II", 0x801, len(labels)) + labels


@pytest.mark.parametrize("join", ["-", "."])
@pytest.mark.parametrize("pack", ["", ".gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_all_spellings_plain_and_packed(tmp_path, join, pack, split, prefix):
    squeeze = gzip.compress if pack else bytes
    (tmp_path / f"{prefix}-images{join}idx3-ubyte{pack}").write_bytes(squeeze(images_file()))
    (tmp_path / f"{prefix}-labels{join}idx1-ubyte{pack}").write_bytes(squeeze(labels_file()))
    images, labels, names = idx.read(tmp_path, split)
    assert np.array_equal(images[:, 0], PIXELS)
    assert labels.tolist() == list(LABELS)
    assert labels.dtype == np.int64
    assert names is None
    assert idx.read(tmp_path, "test" if split == "train" else "train") is None


def test_images_need_labels_of_the_same_number(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images_file())
    with pytest.raises(UnreadableFile, match="has no train-labels"):
        idx.read(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels_file(LABELS[:4]))
    with pytest.raises(UnreadableFile, match=r"5 images, but .* 4 labels"):
        idx.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG" + bytes(40), "starts with 89504e47"),
        (labels_file(), "not 00000803"),
        (images_file()[:10], "not an IDX file"),
        (images_file()[:-1], "only 59"),
        (images_file() + b"x", "but has more"),
        (images_file(2**32 - 1), "too many"),
        (images_file(6), "should hold 72 bytes"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=message) as caught:
        idx.read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:30] + b"\xff" * 9 + b[39:]])
def test_broken_packed_files_are_refused(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(images_file())))
    with pytest.raises(UnreadableFile):
        idx.read_idx(path, 3)


def test_a_plain_file_named_gz_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(images_file())
    with pytest.raises(UnreadableFile, match="cannot be read"):
        idx.read_idx(path, 3)
