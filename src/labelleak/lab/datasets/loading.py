"""Find a data set by name, and check that it is the one that its name says."""

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelleak.errors import BrokenPlugin, DataNotFound, LabelLeakError, UnreadableFile
from labelleak.lab.datasets import cifar, folders, hub, idx, own
from labelleak.lab.datasets.catalog import CATALOG, Entry
from labelleak.lab.datasets.dataset import Dataset, UncheckedSamples
from labelleak.plugins import (
    Plugin,
    check_parameters,
    filled_in,
    find_plugin,
    plugin_names,
    what_went_wrong,
)

DATA_VARIABLE = "LABELLEAK_DATA"
_SPLITS = {"train": "train", "test": "test", "val": "test"}
# Side up to which all images are held in memory: the largest such set (Tiny-ImageNet) has 1.2 GB.
_SMALL = 64


def names() -> tuple[str, ...]:
    """The names that `load` takes, sorted.

    Examples:
        >>> from labelleak.lab import datasets
        >>> "mnist-sample" in datasets.names()
        True
    """
    return tuple(sorted(CATALOG))


def load(
    name: str,
    *,
    split: str = "train",
    data_dir: str | Path | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Load one split of a data set.

    It is searched in `data_dir`. If that is None, it is searched in the folder of the environment
    variable LABELLEAK_DATA, and then on the Hugging Face hub (extra `data`, with its cache). The
    folder may be the data set's own, or contain a folder of its name, with IDX files (MNIST,
    Fashion-MNIST), the CIFAR python batches or their `.tar.gz`, or for each split one folder of
    images per class. Slow conversions are cached in LABELLEAK_CACHE, by default ~/.cache/labelleak.

    Args:
        name: one of `names()`; data of your own below `data_dir`: "folder:NAME" (one folder of
            images per class), "npz:NAME" (arrays in NAME.npz, see `own.read_npz`) or "hf:NAME" (a
            Hugging Face data set as `save_to_disk` writes it); or a plug-in, "module:name" or an
            entry point of another package: a function of the split that returns a `Dataset`, with
            `data_dir` and `image_size` where it has such parameters. "mnist-sample" is part of
            labelleak (5,000 training and 1,000 test digits) and needs no files; "folder" is any
            folder with one folder of images per class, given as `data_dir`.
        split: "train", or "test" for the held-out split; "val" is the same as "test".
        data_dir: folder with the data.
        image_size: side in pixels of the square cut out of photographs (ImageNet, and folders of
            images larger than 64 pixels); None: 224. With "folder", smaller images, of any sizes,
            are then treated as photographs, too.

    Returns:
        The data set; its `name` is `name`, or "folder-" and the folder's own name.

    Raises:
        ValueError: an unknown name or split, or `image_size` for a data set of fixed size.
        DataNotFound: it is missing; the message lists the searched places and what to do.
        UnreadableFile: a file is broken, or is another data set.

    Examples:
        >>> from labelleak.lab import datasets
        >>> digits = datasets.load("mnist-sample")
        >>> digits.classes, digits.image_shape
        (10, (1, 28, 28))
    """
    check_name(name)
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(_SPLITS)}")
    split = _SPLITS[split]
    if name not in CATALOG:
        return _load_other(name, split, data_dir or os.environ.get(DATA_VARIABLE), image_size)
    entry = CATALOG[name]
    if image_size is not None:
        if entry.image_shape is not None and max(entry.image_shape) <= _SMALL:
            raise ValueError(f"{name} has images of a fixed size: leave image_size out")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
    if name == "mnist-sample":
        return _dataset(_sample(split), entry, name, "the embedded sample")
    if name == "folder" and data_dir is None:
        raise ValueError(
            "data set 'folder' needs data_dir: the folder that holds the class folders"
        )

    root = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    searched = []
    if root:
        for folder in _candidates(entry, Path(root).expanduser()):
            samples = _read(entry, split, folder, image_size)
            if samples is not None:
                used = f"folder-{folder.resolve().name}" if name == "folder" else name
                return _dataset(samples, entry, used, str(folder))
            searched.append(f"{folder} ({_why_not(folder)})")
    if data_dir is None and entry.hub is not None and entry.image_shape is not None:
        try:
            samples = hub.read(
                entry.hub,
                split,
                image_shape=entry.image_shape,
                small=_SMALL,
                size=image_size or entry.image_shape[1],
            )
        except DataNotFound as error:
            searched.append(str(error))
        else:
            return _dataset(samples, entry, name, entry.hub.path)
    where = f"; looked in {'; '.join(searched)}" if searched else ""
    raise DataNotFound(f"{name}, split {split}, was not found{where}. {_advice(entry)}")


def check_name(name: str) -> None:
    """Refuse the name of a data set that `load` cannot take; a plug-in is imported.

    Args:
        name: As for `load`.

    Raises:
        ValueError: There is no such data set or plug-in, or it needs parameters.
    """
    if name in CATALOG:
        return
    if name.partition(":")[0] in own.FORMS:
        own.check_own_name(name)
    elif (plugin := data_plugin(name)) is not None:
        make = _callable(plugin)
        filled = filled_in(make, {"split": 0, "data_dir": 0, "image_size": 0})
        check_parameters(f"the data set {name!r}", make, (), filled)


def data_plugin(name: str) -> Plugin | None:
    """The plug-in that a data set comes from; None for one of labelleak or of the data folder.

    Args:
        name: As for `load`.

    Raises:
        ValueError: There is no such data set or plug-in.
    """
    if name in CATALOG or name.partition(":")[0] in own.FORMS:
        return None
    if ":" not in name and name not in plugin_names("datasets"):
        known = ", ".join((*names(), *plugin_names("datasets")))
        forms = ", ".join(f"{form}:NAME" for form in own.FORMS)
        raise ValueError(
            f"unknown data set {name!r}: choose one of {known}, {forms}, or module:name"
        )
    return find_plugin("datasets", name)


def _callable(plugin: Plugin) -> Callable[..., Any]:
    if not callable(plugin.target):
        raise BrokenPlugin(f"the data set {plugin.name!r} is no function of a split")
    return plugin.target


def _load_other(name: str, split: str, root: str | Path | None, image_size: int | None) -> Dataset:
    """A data set of the user's own, or of a plug-in."""
    plugin = data_plugin(name)
    if plugin is not None:
        given = {"split": split, "data_dir": root, "image_size": image_size}
        make = _callable(plugin)
        try:
            made = make(**filled_in(make, given))
        except LabelLeakError:
            raise
        except Exception as error:  # whatever other people's code raises
            raise BrokenPlugin(f"the data set {name!r} failed: {what_went_wrong(error)}") from None
        if not isinstance(made, Dataset):
            raise BrokenPlugin(
                f"the data set {name!r} returns {type(made).__name__}: a "
                "labelleak.lab.datasets.Dataset is needed"
            )
        return made
    path, title = own.place_of(name, root)
    form = name.partition(":")[0]
    if form == "npz":
        return own.read_npz(path, split, title)
    if form == "hf":
        found = own.read_hf(path, split, title, small=_SMALL, size=image_size)
        return found if isinstance(found, Dataset) else _of_folder(found, title, path)
    samples = _read(CATALOG["folder"], split, path, image_size)
    if samples is None:
        raise DataNotFound(f"{path} has no class folders with images for the split {split}")
    return _of_folder(samples, title, path)


def _of_folder(samples: UncheckedSamples, title: str, path: Path) -> Dataset:
    return _dataset(samples, CATALOG["folder"], title, str(path))


def _candidates(entry: Entry, root: Path) -> list[Path]:
    """The folders to search: those of the data set's name first, then the folder itself."""
    own = (entry.name, *entry.aliases)
    # MNIST and Fashion-MNIST have the same file names: never read from a folder that is named after
    # another data set.
    others = {
        alias.lower()
        for other in CATALOG.values()
        if other is not entry and other.image_shape is not None
        for alias in (other.name, *other.aliases)
    }
    if entry.name == "folder":
        return [root]
    below = [root / alias for alias in own]
    mistaken = root.resolve().name.lower() in others
    return [folder for folder in below if folder.is_dir()] + ([] if mistaken else [root])


def _read(
    entry: Entry, split: str, folder: Path, image_size: int | None
) -> UncheckedSamples | None:
    samples = idx.read(folder, split) if entry.idx else None
    if samples is None and entry.batches is not None:
        samples = cifar.read(folder, split, entry.batches)
    if samples is None:
        samples = folders.read(
            folder,
            split,
            image_shape=entry.image_shape,
            small=_SMALL,
            size=image_size,
            undivided=entry.name == "folder",
        )
    return samples


def _why_not(folder: Path) -> str:
    return "nothing of it there" if folder.is_dir() else "no such folder"


def _advice(entry: Entry) -> str:
    formats = ["one folder of images per class, train/<class>/ and val/<class>/"]
    if entry.batches is not None:
        formats.insert(0, f"{entry.batches.archive}, unpacked or not")
    if entry.idx:
        formats.insert(0, "its IDX files")
    text = f"Point data_dir or {DATA_VARIABLE} at a folder with {', or '.join(formats)}"
    if entry.hub is not None:
        text += "; or leave data_dir out to have it downloaded (pip install 'labelleak[data]')"
    return text + "."


def _sample(split: str) -> UncheckedSamples:
    path = resources.files("labelleak.lab.datasets") / "samples" / "mnist.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return UncheckedSamples(images[:, None], labels.astype(np.int64), None)


def _dataset(samples: UncheckedSamples, entry: Entry, name: str, source: str) -> Dataset:
    """The samples as a data set, after a check against the data set's entry."""
    images, labels, class_names = samples
    class_names = class_names or entry.class_names
    if len(labels) == 0:
        raise UnreadableFile(f"{source} holds no samples")
    classes = entry.classes
    if classes is None:
        classes = len(class_names or ())
    if class_names is not None and len(class_names) != classes:
        raise UnreadableFile(
            f"{source} has {len(class_names)} classes, but {name} has {classes}; load an "
            "incomplete or different set of class folders as 'folder'"
        )
    if entry.image_shape is not None and isinstance(images, np.ndarray):
        expected, found = entry.image_shape, images.shape[1:]
        if found != expected:
            raise UnreadableFile(
                f"{source} has images of shape {found}, but those of {name} have {expected}"
            )
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.max() if labels.max() >= classes else labels.min()
        raise UnreadableFile(f"{source} has the label {wrong}, but {name} has {classes} classes")
    return Dataset(
        name=name,
        # np.require copies what is read-only (a view of a file's bytes): tensors are writable
        images=torch.from_numpy(np.require(images, requirements=("C", "W")))
        if isinstance(images, np.ndarray)
        else images,
        labels=torch.from_numpy(labels),
        classes=classes,
        class_names=class_names,
        mean=entry.mean,
        std=entry.std,
    )
