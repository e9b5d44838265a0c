import sys

import numpy as np
import pytest
from PIL import Image

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets import catalog, hub, load
from labelleak.lab.datasets.dataset import Photographs

datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)


@pytest.fixture
def serve(monkeypatch):
    """Makes load_dataset give rows made here; returns the calls it got."""

    def start(images, labels, classes, image="image", label="label"):
        features = datasets.Features(
            {
                image: datasets.Image(),
                label: datasets.ClassLabel(names=[f"class {number}" for number in range(classes)]),
            }
        )
        rows = datasets.Dataset.from_dict(
            {image: [Image.fromarray(pixels) for pixels in images], label: labels},
            features=features,
        )
        calls = []

        def load_dataset(path, **options):
            calls.append((path, options))
            return rows

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return start


@pytest.mark.parametrize(
    ("name", "path", "shape", "columns", "held_out"),
    [
        ("mnist", "ylecun/mnist", (28, 28), ("image", "label"), "test"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist", (28, 28), ("image", "label"), "test"),
        ("cifar10", "uoft-cs/cifar10", (32, 32, 3), ("img", "label"), "test"),
        ("cifar100", "uoft-cs/cifar100", (32, 32, 3), ("img", "fine_label"), "test"),
        ("tiny-imagenet", "zh-plus/tiny-imagenet", (64, 64, 3), ("image", "label"), "valid"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_small_data_sets_become_arrays(serve, name, path, shape, columns, held_out, split):
    classes = catalog.CATALOG[name].classes
    pixels = RNG.integers(0, 256, (4, *shape), dtype=np.uint8)
    calls = serve(pixels, [0, classes - 1, 1, 1], classes, *columns)
    dataset = load(name, split=split)
    assert calls == [(path, {"split": "train" if split == "train" else held_out})]
    expected = pixels[:, None] if len(shape) == 2 else pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.images.numpy(), expected)
    assert dataset.labels.tolist() == [0, classes - 1, 1, 1]
    assert dataset.class_names[1] == "class 1"
    assert dataset.name == name


def test_gray_images_among_colored_ones_become_colored(serve):
    serve([RNG.integers(0, 256, (64, 64), dtype=np.uint8)], [3], 200)
    pixels = load("tiny-imagenet").images[0]
    assert pixels.shape == (3, 64, 64)
    assert np.array_equal(pixels[0], pixels[2])


@pytest.mark.parametrize(("split", "theirs"), [("train", "train"), ("val", "validation")])
def test_imagenet_is_decoded_lazily_and_only_its_split_is_downloaded(serve, split, theirs):
    pixels = RNG.integers(0, 256, (2, 256, 300, 3), dtype=np.uint8)
    calls = serve(pixels, [999, 0], 1000)
    dataset = load("imagenet", split=split)
    ((path, options),) = calls
    assert path == "ILSVRC/imagenet-1k"
    assert options["split"] == theirs
    assert list(options["data_files"]) == [theirs]
    assert options["verification_mode"] == "no_checks"
    assert isinstance(dataset.images, Photographs)
    assert dataset.image_shape == (3, 224, 224)
    assert np.array_equal(
        dataset.images.decode(1).numpy(), pixels[1, 16:240, 38:262].transpose(2, 0, 1)
    )
    assert load("imagenet", split=split, image_size=96).image_shape == (3, 96, 96)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach it\non the hub"),
        datasets.exceptions.DatasetNotFoundError("gated: ask for access"),
        datasets.exceptions.DatasetGenerationError("no room"),
        ValueError("unknown split"),
    ],
)
def test_what_stops_the_download_is_told_in_one_line(monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataNotFound) as caught:
        load("cifar100")
    message = str(caught.value)
    assert " ".join(str(error).split()) in message
    assert "LABELLEAK_DATA" in message
    assert "cifar-100-python.tar.gz" in message
    assert "\n" not in message


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataNotFound, match=r"pip install 'labelleak\[data\]'"):
        load("mnist")


def test_images_of_another_size_are_refused(serve):
    serve(RNG.integers(0, 256, (1, 30, 28), dtype=np.uint8), [0], 10)
    with pytest.raises(UnreadableFile, match="ylecun/mnist, image 0 has 28x30 pixels"):
        load("mnist")


def test_a_set_with_other_classes_is_refused(serve):
    serve(RNG.integers(0, 256, (1, 28, 28), dtype=np.uint8), [0], 47)
    with pytest.raises(UnreadableFile, match="47 classes, but mnist has 10"):
        load("mnist")


def test_samples_without_a_label_are_refused(serve):
    serve(RNG.integers(0, 256, (1, 28, 28), dtype=np.uint8), [-1], 10)
    with pytest.raises(UnreadableFile, match="label -1"):
        load("mnist")


def test_a_damaged_image_is_refused(monkeypatch):
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}], "label": [0]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
        ),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(UnreadableFile, match="image 0"):
        hub.read(hub.HubSource("x/y"), "train", image_shape=(1, 28, 28), small=64, size=224)
