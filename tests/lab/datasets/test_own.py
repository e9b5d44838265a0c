"""Data of the user's own: class folders, arrays, and what `datasets` saves, told apart by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import experiment, observations
from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab.datasets import load

RANDOM = np.random.default_rng(0)


def picture(side=12):
    return Image.fromarray(RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def folders(tmp_path):
    """Two folders of images with other numbers of classes."""
    for name, classes in (("birds", 2), ("trees", 3)):
        for label in range(classes):
            for number in range(4):
                path = tmp_path / name / "train" / f"{name}{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture().save(path)
    return tmp_path


def test_several_folders_are_told_apart(folders):
    birds, trees = (load(f"folder:{name}", data_dir=folders) for name in ("birds", "trees"))
    assert (birds.name, birds.classes, len(birds)) == ("folder-birds", 2, 8)
    assert (trees.name, trees.classes, trees.class_names[0]) == ("folder-trees", 3, "trees0")
    both = [experiment(data=f"folder:{name}", batch={"size": 4}) for name in ("birds", "trees")]
    assert [observations(e, data_dir=folders)[0].head.classes for e in both] == [2, 3]
    assert both[0].trial_key(0) != both[1].trial_key(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:none", "data set 'folder:none' is not at "),
        ("npz:birds", "birds.npz"),
        ("folder:birds/train", "has no class folders with images for the split test"),
    ],
)
def test_what_is_missing_is_named(folders, name, message):
    with pytest.raises(DataNotFound, match=message):
        load(name, split="test", data_dir=folders)


def test_no_data_folder(monkeypatch):
    monkeypatch.delenv("LABELLEAK_DATA", raising=False)
    with pytest.raises(DataNotFound, match="give --data-dir or LABELLEAK_DATA"):
        load("folder:birds")


@pytest.mark.parametrize("name", ["npz:", "npz:../x", "npz:/etc/x", "hf:a\\b", "folder:a//b"])
def test_no_name_leads_out_of_the_data_folder(tmp_path, name):
    with pytest.raises(ValueError, match="is below the data folder"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize("last", [True, False])
def test_arrays_of_images_are_normalized_by_the_training_split(tmp_path, last):
    """As MedMNIST has them: labels in a column, the held-out split beside them."""
    images = RANDOM.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    shaped = images if last else images.transpose(0, 3, 1, 2)
    labels = (np.arange(20) % 4)[:, None]
    np.savez(
        tmp_path / "scans.npz",
        train_images=shaped[:12], train_labels=labels[:12],
        test_images=shaped[12:], test_labels=labels[12:],
    )  # fmt: skip
    held_out = load("npz:scans", split="test", data_dir=tmp_path)
    assert (held_out.image_shape, held_out.classes, len(held_out)) == ((3, 8, 8), 4, 8)
    inputs, found = held_out.batch(torch.arange(8))
    scaled = images[:12].astype(np.float64) / 255
    mean, std = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    expected = ((images[12:] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-4)
    assert found.tolist() == labels[12:, 0].tolist()


def test_numbers_and_tokens_go_to_the_network_as_they_are(tmp_path):
    x = RANDOM.normal(size=(12, 7))
    np.savez(tmp_path / "table.npz", x_train=x, y_train=np.arange(12) % 2)
    table = load("npz:table", data_dir=tmp_path)
    np.testing.assert_allclose(table.batch(torch.arange(12))[0].numpy(), x, rtol=1e-6)
    with pytest.raises(ValueError, match=r"npz-table has inputs of shape \(7,\), and images are"):
        _ = table.image_shape
    tokens = RANDOM.integers(0, 9, (12, 5)).astype(np.int32)
    np.savez(tmp_path / "words.npz", train_inputs=tokens, train_labels=np.arange(12) % 2)
    words = load("npz:words", data_dir=tmp_path)
    assert words.has_tokens
    assert words.batch(torch.tensor([3]))[0].tolist() == tokens[3:4].tolist()
    with pytest.raises(DataNotFound, match="holds no test_images and test_labels"):
        load("npz:words", split="test", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": np.zeros((2, 3)), "train_labels": np.zeros(2)}, "labels must be integ"),
        ({"x_train": np.full((2, 3), np.nan), "y_train": np.zeros(2, int)}, "finite numbers"),
        ({"x_train": np.zeros((2, 3)), "y_train": np.zeros(3, int)}, "2 inputs and 3 labels"),
        ({"x_train": np.zeros((2, 4, 4, 7), "uint8"), "y_train": np.zeros(2, int)}, "neither 1"),
        ({"x_train": np.array([{}, {}]), "y_train": np.zeros(2, int)}, "is no file of arrays"),
    ],
)
def test_arrays_that_are_none_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **arrays)
    with pytest.raises(UnreadableFile, match=message):
        load("npz:bad", data_dir=tmp_path)


def test_what_the_library_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    named = datasets.ClassLabel(names=["no", "yes"])
    text = {"input_ids": [[5, 6], [7, 8, 9], [3]], "label": [0, 1, 1]}
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value("int64")), "label": named}
    )
    rows = datasets.Dataset.from_dict(text, features=features)
    datasets.DatasetDict(train=rows, validation=rows.select([1])).save_to_disk(tmp_path / "texts")
    train = load("hf:texts", data_dir=tmp_path)
    assert train.images.tolist() == [[5, 6, 0], [7, 8, 9], [3, 0, 0]]
    assert (train.name, train.class_names) == ("hf-texts", ("no", "yes"))
    assert load("hf:texts", split="test", data_dir=tmp_path).labels.tolist() == [1]
    photos = [picture() for _ in range(3)]
    features = datasets.Features({"photo": datasets.Image(), "label": named})
    images = datasets.Dataset.from_dict({"photo": photos, "label": [1, 0, 1]}, features=features)
    images.save_to_disk(tmp_path / "photos")
    found = load("hf:photos", data_dir=tmp_path)
    assert (found.image_shape, found.classes) == ((3, 12, 12), 2)
    assert torch.equal(found.images[1].permute(1, 2, 0), torch.from_numpy(np.array(photos[1])))
    with pytest.raises(DataNotFound, match="has no splits"):
        load("hf:photos", split="test", data_dir=tmp_path)
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "other")
    with pytest.raises(UnreadableFile, match="has the columns a; needed are label or labels"):
        load("hf:other", data_dir=tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UnreadableFile, match="is no saved data set of `datasets`"):
        load("hf:nothing", data_dir=tmp_path)
