import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelleak.errors import UnreadableFile
from labelleak.lab.datasets import cifar


def batch(count, key=b"fine_labels", seed=0):
    rng = np.random.default_rng(seed)
    return {
        b"filenames": [b"image_%d.png" % number for number in range(count)],
        b"batch_label": b"training batch 1 of 1",
        key: rng.integers(0, 10, count).tolist(),
        b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
    }


def python2(entry):
    """What cPickle of Python 2 wrote, protocol 2: text as bytes, arrays by NumPy 1."""
    if isinstance(entry, bytes):
        return b"T" + struct.pack("<I", len(entry)) + entry
    if isinstance(entry, int):
        return b"K" + bytes([entry]) if 0 <= entry < 256 else b"J" + struct.pack("<i", entry)
    if isinstance(entry, list):
        return b"](" + b"".join(map(python2, entry)) + b"e"
    if isinstance(entry, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in entry.items()) + b"u"
    assert entry.dtype == np.uint8
    dtype = (
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    shape = b"(" + b"".join(map(python2, entry.shape)) + b"t"
    return array + b"(K\x01" + shape + dtype + b"I00\n" + python2(entry.tobytes()) + b"tb"


def as_python2(entry):
    return b"\x80\x02" + python2(entry) + b"."


WRITERS = [as_python2] + [
    lambda entry, protocol=protocol: pickle.dumps(entry, protocol) for protocol in range(2, 6)
]


def write_cifar100(folder, write=as_python2, count=6):
    folder.mkdir(parents=True)
    train = batch(count)
    (folder / "train").write_bytes(write(train))
    (folder / "test").write_bytes(write(batch(3, seed=1)))
    (folder / "meta").write_bytes(
        write({b"fine_label_names": [b"class %d" % i for i in range(100)]})
    )
    return train


@pytest.mark.parametrize("write", WRITERS)
def test_batches_of_every_pickle_protocol(tmp_path, write):
    train = write_cifar100(tmp_path / "cifar-100-python", write)
    for place in (tmp_path, tmp_path / "cifar-100-python"):
        images, labels, names = cifar.read(place, "train", cifar.CIFAR100)
        assert np.array_equal(images.reshape(-1, 3072), train[b"data"])
        assert images.shape == (6, 3, 32, 32)
        assert labels.tolist() == train[b"fine_labels"]
        assert names[17] == "class 17"
    assert len(cifar.read(tmp_path, "test", cifar.CIFAR100).labels) == 3


def test_text_keys_are_understood_too(tmp_path):
    train = {key.decode(): value for key, value in batch(4).items()}
    (tmp_path / "train").write_bytes(pickle.dumps(train))
    images, labels, names = cifar.read(tmp_path, "train", cifar.CIFAR100)
    assert np.array_equal(images.reshape(-1, 3072), train["data"])
    assert labels.tolist() == train["fine_labels"]
    assert names is None


def write_cifar10(folder):
    folder.mkdir(parents=True)
    batches = [batch(2, b"labels", seed) for seed in range(6)]
    for number, content in enumerate(batches[:5], start=1):
        (folder / f"data_batch_{number}").write_bytes(as_python2(content))
    (folder / "test_batch").write_bytes(as_python2(batches[5]))
    (folder / "batches.meta").write_bytes(as_python2({b"label_names": [b"cat"] * 10}))
    return batches


def test_the_five_batches_of_cifar10_are_joined_in_order(tmp_path):
    batches = write_cifar10(tmp_path / "cifar-10-batches-py")
    images, labels, names = cifar.read(tmp_path, "train", cifar.CIFAR10)
    expected = np.concatenate([content[b"data"] for content in batches[:5]])
    assert np.array_equal(images.reshape(-1, 3072), expected)
    assert labels.tolist() == [label for content in batches[:5] for label in content[b"labels"]]
    assert names == ("cat",) * 10


def test_the_archive_is_read_without_unpacking_it(tmp_path):
    batches = write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    samples = cifar.read(data, "test", cifar.CIFAR10)
    assert np.array_equal(samples.images.reshape(-1, 3072), batches[5][b"data"])
    assert samples.class_names == ("cat",) * 10
    assert [path.name for path in data.iterdir()] == ["cifar-10-python.tar.gz"]


def test_conversion_happens_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    write_cifar100(tmp_path / "cifar-100-python")
    loads = []
    original = cifar.load_restricted
    monkeypatch.setattr(
        cifar, "load_restricted", lambda *arguments: loads.append(1) or original(*arguments)
    )
    first = cifar.read(tmp_path, "train", cifar.CIFAR100)
    assert len(loads) == 2
    second = cifar.read(tmp_path, "train", cifar.CIFAR100)
    assert len(loads) == 2
    assert np.array_equal(first.images, second.images)
    assert first.class_names == second.class_names
    (tmp_path / "cifar-100-python" / "train").write_bytes(as_python2(batch(2, seed=9)))
    assert len(cifar.read(tmp_path, "train", cifar.CIFAR100).labels) == 2


def test_nothing_there_is_no_error(tmp_path):
    assert cifar.read(tmp_path, "train", cifar.CIFAR100) is None
    (tmp_path / "train").mkdir()
    assert cifar.read(tmp_path, "train", cifar.CIFAR100) is None


class Runs:
    """Pickled, this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    ("hostile", "asks_for"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), "posix.system|nt.system"),
        (lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"), "builtin.*eval"),
        (lambda marker: Runs(Path, str(marker)), "pathlib"),
        (lambda marker: Runs(np.save, str(marker), 1), "numpy.*save"),
        (lambda marker: Runs(getattr, "", "join"), "getattr"),
    ],
)
def test_a_pickle_that_would_run_something_is_refused(tmp_path, protocol, hostile, asks_for):
    marker = tmp_path / "marker.npy"
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps(batch(1) | {b"more": hostile(marker)}, protocol))
    with pytest.raises(UnreadableFile, match=asks_for) as caught:
        cifar.read(tmp_path, "train", cifar.CIFAR100)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        # set attributes of what numpy.dtype and _codecs.encode are given as
        b"\x80\x02cnumpy\ndtype\n}U\x05valueK\x01sb.",
        b"\x80\x02c_codecs\nencode\nN}U\x05valueK\x01s\x86b.",
        # a codec other than latin1
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hext\x52.",
        # an array of objects
        pickle.dumps({"data": np.array([object, 1], dtype=object)}),
        pickle.dumps({"data": np.zeros(3)}, 2),
        # an array whose shape claims more than it has
        as_python2({b"data": np.zeros((2, 3), np.uint8)}).replace(b"K\x02K\x03", b"K\xffK\xff"),
        # 64 GB for the memo
        b"\x80\x02}r\xff\xff\xff\x7f.",
        # a bytearray of 2**62 bytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        pickle.dumps([1, 2]),
        b"not a pickle",
        b"",
    ],
)
def test_hostile_and_broken_pickles_are_refused(content):
    with pytest.raises(UnreadableFile, match="not a CIFAR batch"):
        cifar.load_restricted(content, Path("batch"))
    # and the reader is as it was
    good = cifar.load_restricted(as_python2(batch(1)), Path("batch"))
    assert good["data"].shape == (1, 3072)


SMALL = pickle.dumps({b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"l": [1, 2, 3]}, 2)


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.booleans())
def test_damage_gives_a_dict_or_one_error(position, value, cut):
    changed = SMALL[:position] if cut else SMALL[:position] + bytes([value]) + SMALL[position + 1 :]
    try:
        loaded = cifar.load_restricted(changed, Path("batch"))
    except UnreadableFile:
        return
    assert isinstance(loaded, dict)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((2, 3071), np.uint8)}, "32x32"),
        ({b"data": b"pixels"}, "32x32"),
        ({b"fine_labels": [1]}, "2 images, but 1 labels"),
        ({b"fine_labels": [1, -1]}, "list of classes"),
        ({b"fine_labels": [1, 2**70]}, "list of classes"),
        ({b"fine_labels": [1, b"2"]}, "list of classes"),
        ({b"fine_labels": 7}, "list of classes"),
    ],
)
def test_batches_with_the_wrong_contents_are_refused(tmp_path, change, message):
    (tmp_path / "train").write_bytes(pickle.dumps(batch(2) | change))
    with pytest.raises(UnreadableFile, match=message):
        cifar.read(tmp_path, "train", cifar.CIFAR100)


def test_a_wrong_meta_file_is_refused(tmp_path):
    write_cifar100(tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "meta").write_bytes(as_python2({b"fine_label_names": [3]}))
    with pytest.raises(UnreadableFile, match="list of names"):
        cifar.read(tmp_path, "train", cifar.CIFAR100)


def test_broken_archives_are_refused(tmp_path):
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(UnreadableFile, match="cannot be read"):
        cifar.read(tmp_path, "train", cifar.CIFAR100)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-100-python/meta"), io.BytesIO())
    with pytest.raises(UnreadableFile, match="does not hold cifar-100-python/train"):
        cifar.read(tmp_path, "train", cifar.CIFAR100)
    # cut in the middle of random (incompressible) pixels
    write_cifar100(tmp_path / "made")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "made", "cifar-100-python")
    path.write_bytes(path.read_bytes()[:15000])
    with pytest.raises(UnreadableFile, match="cannot be read"):
        cifar.read(tmp_path, "train", cifar.CIFAR100)
