import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import labelleak.lab.datasets
from labelleak.errors import DataNotFound, LabelLeakError, UnreadableFile
from labelleak.lab.datasets import load, names
from labelleak.lab.datasets.catalog import CATALOG
from labelleak.lab.datasets.dataset import Photographs

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Nothing may be asked of the hub here."""
    monkeypatch.setitem(sys.modules, "datasets", None)


def write_idx(folder, count=6, shade=0, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        pixels = bytes([shade]) * (count * 28 * 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + bytes(labels or range(count))
        )


def write_folders(root, classes, side, mode="RGB", splits=("train", "val")):
    for split in splits:
        for number in range(classes):
            path = root / split / f"c{number:04}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.new(mode, (side, side), number % 256).save(path)


def test_the_sample_is_the_start_of_mnist():
    train, test = load("mnist-sample"), load("mnist-sample", split="test")
    assert (len(train), len(test)) == (5000, 1000)
    # the first digits of MNIST, as everybody knows them
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert train.image_shape == (1, 28, 28)
    assert train.name == "mnist-sample"
    assert train.class_names == tuple("0123456789")
    inputs, _ = train.batch(torch.arange(5000))
    assert inputs.mean() == pytest.approx(0, abs=0.03)
    assert inputs.std() == pytest.approx(1, abs=0.03)


def test_the_sample_can_be_learnt():
    # nearest class mean reaches about 80 % on MNIST: images and labels belong together
    train, test = load("mnist-sample"), load("mnist-sample", split="test")
    inputs, labels = train.batch(torch.arange(5000))
    means = torch.stack([inputs[labels == digit].flatten(1).mean(0) for digit in range(10)])
    inputs, labels = test.batch(torch.arange(1000))
    guesses = torch.cdist(inputs.flatten(1), means).argmin(1)
    assert (guesses == labels).double().mean() > 0.75


def test_names_are_sorted_and_known():
    assert list(names()) == sorted(CATALOG)
    assert {"mnist-sample", "imagenet", "cifar100", "folder"} <= set(names())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "svhn"}, "cifar10, cifar100"),
        ({"name": "mnist-sample", "split": "extra"}, "train, test, val"),
        ({"name": "mnist-sample", "image_size": 32}, "fixed size"),
        ({"name": "imagenet", "image_size": 0}, "at least 1"),
        ({"name": "folder"}, "needs data_dir"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
def test_the_folder_itself_or_one_of_the_name_below_it(tmp_path, below):
    write_idx(tmp_path / below)
    dataset = load("mnist", data_dir=tmp_path)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.name == "mnist"
    assert dataset.mean == (0.1307,)
    assert len(load("mnist", data_dir=str(tmp_path), split="val")) == 6


def test_a_folder_of_the_name_goes_before_the_folder_itself(tmp_path):
    write_idx(tmp_path, shade=1)
    write_idx(tmp_path / "mnist", shade=2)
    assert load("mnist", data_dir=tmp_path).images.unique().tolist() == [2]


def test_a_folder_named_after_another_data_set_is_not_mistaken(tmp_path):
    write_idx(tmp_path / "fashion-mnist")
    assert load("fashion-mnist", data_dir=tmp_path / "fashion-mnist").name == "fashion-mnist"
    assert load("fashion-mnist", data_dir=tmp_path).mean == (0.2860,)
    for folder in (tmp_path, tmp_path / "fashion-mnist"):
        with pytest.raises(DataNotFound):
            load("mnist", data_dir=folder)


def test_the_environment_variable_is_used_unless_a_folder_is_given(tmp_path, monkeypatch):
    write_idx(tmp_path / "one" / "mnist", shade=1)
    write_idx(tmp_path / "two" / "mnist", shade=2)
    monkeypatch.setenv("LABELLEAK_DATA", str(tmp_path / "one"))
    assert load("mnist").images.unique().tolist() == [1]
    assert load("mnist", data_dir=tmp_path / "two").images.unique().tolist() == [2]


def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLEAK_DATA", str(tmp_path))
    with pytest.raises(DataNotFound) as caught:
        load("cifar10")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "cifar-10-python.tar.gz" in message
    assert "datasets" in message
    assert "\n" not in message
    assert isinstance(caught.value, LabelLeakError)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_folder_that_was_given_is_the_only_place(tmp_path):
    with pytest.raises(DataNotFound) as caught:
        load("mnist", data_dir=tmp_path / "nowhere")
    assert "no such folder" in str(caught.value)
    # the library datasets is missing here: it was not even asked
    assert "needs the library" not in str(caught.value)


def test_data_that_is_nowhere_to_download_says_so(tmp_path):
    with pytest.raises(DataNotFound) as caught:
        load("tiny-imagenet-100")
    assert "downloaded" not in str(caught.value)
    assert "train/<class>/" in str(caught.value)


def test_tiny_imagenet_100_from_folders(tmp_path):
    write_folders(tmp_path / "tiny-imagenet-100", 100, 32)
    dataset = load("tiny-imagenet-100", split="test", data_dir=tmp_path)
    assert dataset.labels.tolist() == list(range(100))
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.classes == 100


def test_imagenet_from_folders_is_lazy(tmp_path):
    write_folders(tmp_path, 1000, 4, splits=("val",))
    dataset = load("imagenet", split="val", data_dir=tmp_path)
    assert isinstance(dataset.images, Photographs)
    assert dataset.labels.tolist() == list(range(1000))
    inputs, labels = dataset.batch(torch.tensor([7]), augment=torch.Generator().manual_seed(0))
    # Image.new gives (7, 0, 0)
    red = (7 / 255 - 0.485) / 0.229
    assert inputs[0, 0].unique().tolist() == pytest.approx([red], abs=1e-5)
    assert labels.tolist() == [7]
    with pytest.raises(DataNotFound, match="split train"):
        load("imagenet", data_dir=tmp_path)


def test_mnist_as_image_folders_is_gray(tmp_path):
    write_folders(tmp_path, 10, 28, mode="L")
    dataset = load("mnist", data_dir=tmp_path)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.images[9].unique().tolist() == [9]


def test_any_folder_of_images(tmp_path):
    write_folders(tmp_path / "birds", 3, 20)
    dataset = load("folder", data_dir=tmp_path / "birds")
    assert dataset.name == "folder-birds"
    assert dataset.classes == 3
    assert dataset.class_names == ("c0000", "c0001", "c0002")
    assert dataset.image_shape == (3, 20, 20)
    inside = load("folder", data_dir=tmp_path / "birds" / "train", image_size=48)
    assert inside.lazy
    assert inside.image_shape == (3, 48, 48)


def test_cifar_batches_are_found(tmp_path):
    import pickle

    folder = tmp_path / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    content = {b"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), b"fine_labels": [99, 3]}
    for split in ("train", "test"):
        (folder / split).write_bytes(pickle.dumps(content, 2))
    for place in (tmp_path, tmp_path / "cifar100", folder):
        dataset = load("cifar100", data_dir=place)
        assert dataset.labels.tolist() == [99, 3]
        assert dataset.class_names is None
        assert np.array_equal(dataset.images.reshape(2, -1).numpy(), content[b"data"])
    content[b"fine_labels"] = [100, 3]
    (folder / "test").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UnreadableFile, match="label 100, but cifar100 has 100 classes"):
        load("cifar100", split="test", data_dir=tmp_path)


def test_labels_outside_the_classes_are_refused(tmp_path):
    write_idx(tmp_path, count=3, labels=[0, 10, 1])
    with pytest.raises(UnreadableFile, match="label 10, but mnist has 10 classes"):
        load("mnist", data_dir=tmp_path)


def test_files_without_samples_are_refused(tmp_path):
    write_idx(tmp_path, count=0)
    with pytest.raises(UnreadableFile, match="no samples"):
        load("mnist", data_dir=tmp_path)


def test_images_of_another_shape_are_refused(tmp_path):
    write_idx(tmp_path)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, 6, 14, 14) + bytes(6 * 14 * 14)
        )
    with pytest.raises(UnreadableFile, match=r"\(1, 14, 14\), but those of mnist"):
        load("mnist", data_dir=tmp_path)


def test_an_incomplete_set_of_classes_is_refused(tmp_path):
    write_folders(tmp_path, 3, 32)
    with pytest.raises(UnreadableFile, match=r"3 classes, but tiny-imagenet-100 has 100.*'folder'"):
        load("tiny-imagenet-100", data_dir=tmp_path)


def test_the_public_names_are_these():
    assert labelleak.lab.datasets.__all__ == ["Dataset", "draw", "load", "names", "samplers"]
    assert all(hasattr(labelleak.lab.datasets, name) for name in labelleak.lab.datasets.__all__)


def test_importing_the_room_imports_no_extra():
    import subprocess

    code = "import sys, labelleak.lab.datasets; print({'PIL', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
