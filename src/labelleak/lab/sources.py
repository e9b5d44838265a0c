"""Which data sets stand for those of the paper on this machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from labelleak.errors import DataNotFound
from labelleak.lab.datasets import load
from labelleak.lab.datasets.loading import DATA_VARIABLE


@dataclass(frozen=True)
class Source:
    """Where the images for a published data set come from.

    Attributes:
        data: Name of the data set, one of `labelleak.lab.datasets.names`.
        split: Split that batches are drawn from.
        replacement: Whether batches are drawn with replacement, because there are few images.
    """

    data: str
    split: Literal["train", "test"] = "train"
    replacement: bool = False


PUBLISHED_SOURCES: Mapping[str, Source | None] = MappingProxyType(
    {name: Source(name) for name in ("mnist", "cifar100", "imagenet")}
)
"""The data sets of the paper themselves."""

SAMPLE = Source("mnist-sample")
"""The digits that the package contains."""

_CANDIDATES: dict[str, tuple[Source, ...]] = {
    "mnist": (Source("mnist"), SAMPLE),
    "cifar100": (Source("cifar100"), Source("tiny-imagenet-100")),
    # The validation photographs alone are few per class: each is cropped at random.
    "imagenet": (Source("imagenet"), Source("imagenet", "test", replacement=True)),
}


def find_sources(data_dir: Path | None = None) -> Mapping[str, Source | None]:
    """Find a data set on this machine for each data set of the paper.

    Args:
        data_dir: Folder to search, as in `labelleak.lab.datasets.load`.

    Returns:
        For each of ``mnist``, ``cifar100`` and ``imagenet`` the data set itself if it is available,
        else its stand-in (``mnist-sample``, ``tiny-imagenet-100``, and ImageNet's validation
        photographs cropped at random), else None.

    Raises:
        UnreadableFile: A data set is present but broken.
    """
    root = data_dir or os.environ.get(DATA_VARIABLE)
    found = {}
    for name, candidates in _CANDIDATES.items():
        # ImageNet has 150 GB: never download it unasked.
        known, place = (root is not None, root) if name == "imagenet" else (True, data_dir)
        available = (source for source in candidates if known and _is_available(source, place))
        found[name] = next(available, None)
    return found


def _is_available(source: Source, data_dir: Path | str | None) -> bool:
    try:
        load(source.data, split=source.split, data_dir=data_dir)
    except DataNotFound:
        return False
    return True
