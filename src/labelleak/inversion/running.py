"""One inversion as a user runs it: timed, scored against the true images, and written to files."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak._version import __version__
from labelleak.errors import UnreadableFile
from labelleak.inversion.pictures import grid, png
from labelleak.inversion.quality import Quality, assess, match
from labelleak.inversion.reconstruction import Inversion, LabelMode, Method, invert
from labelleak.inversion.task import ImageShape, Progress
from labelleak.observation import Observation
from labelleak.storage import write_json

SCHEMA = "labelleak/inversion/1"
"""Name and version of ``record.json``."""


@dataclass(frozen=True)
class InversionSettings:
    """How images are sought for; what each means is said by `labelleak.inversion.invert`."""

    method: Method
    image_shape: ImageShape
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mode: LabelMode = "restored"
    attack: str = "auto"
    dtype: torch.dtype | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class InversionRun:
    """An inversion, and how near its images came to the true ones.

    Attributes:
        settings: How the images were sought for.
        batch_size: Number of images.
        found: The images and what is known of them.
        images: Pixels from 0 to 1, shape (batch, channels, height, width): those of `found`, in the
            order of the true images where these are known.
        order: Place in `found` of each of `images`, int64, shape (batch,); None where the true
            images are not known.
        quality: Scores of `images`; None where the true images are not known.
        seconds: Time that the search took.
    """

    settings: InversionSettings
    batch_size: int
    found: Inversion
    images: Float[Tensor, "batch channels height width"]
    order: Int[Tensor, " batch"] | None
    quality: Quality | None
    seconds: float

    def as_dict(
        self, source: Mapping[str, str], network: Mapping[str, Any], device: str
    ) -> dict[str, Any]:
        """The record of the run as plain data, schema ``labelleak/inversion/1``.

        Args:
            source: The files that it started from.
            network: Name and options of the network.
            device: Where it ran.
        """
        settings, dtype = self.settings, str(self.found.images.dtype).removeprefix("torch.")
        return {
            "schema": SCHEMA,
            "version": __version__,
            "source": dict(source),
            "network": dict(network),
            "image_shape": settings.image_shape,
            "batch_size": self.batch_size,
            "mean": settings.mean,
            "std": settings.std,
            "settings": {**asdict(settings.method), "seed": settings.seed, "dtype": dtype},
            "device": device,
            "result": self.found.as_dict(),
            "order": None if self.order is None else self.order.tolist(),
            "score": None if self.quality is None else self.quality.as_dict(),
            "seconds": self.seconds,
        }


def run_inversion(
    observation: Observation,
    settings: InversionSettings,
    *,
    labels: Int[Tensor, " batch"] | None = None,
    truth: Float[Tensor, "batch channels height width"] | None = None,
    progress: Progress | None = None,
) -> InversionRun:
    """Find the images that an update gives away, and hold them against the true ones.

    The true images meet the result in the score alone; the search never sees them.

    Args:
        observation: What the server sees, with the model, all its gradients and the batch size.
        settings: How the images are sought for.
        labels: True class of each image, int64, shape (batch,): the search takes them in the mode
            ``given`` alone, matching with `truth` wherever the labels were fixed.
        truth: The true images, pixels from 0 to 1.
        progress: Told how far the search is.

    Returns:
        The images and their scores.

    Raises:
        MissingKnowledge: The observation lacks something, or the attack restores no counts.
        InvalidObservation: The gradient is not of this network, or shapes do not fit.
        LabelLeakError: The search led nowhere, or torchmetrics is not installed.
        ValueError: The mode ``given`` comes without labels.
    """
    start = time.perf_counter()
    found = invert(
        observation,
        settings.method,
        image_shape=settings.image_shape,
        mean=settings.mean,
        std=settings.std,
        mode=settings.mode,
        labels=labels if settings.mode == "given" else None,
        attack=settings.attack,
        dtype=settings.dtype,
        seed=settings.seed,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    images, order, quality = found.images, None, None
    if truth is not None:
        both = labels is not None and found.mode in ("restored", "given")
        own, true = (found.labels, labels) if both else (None, None)
        order = match(images, truth, own, true)
        images = images[order.to(images.device)]
        quality = assess(images, truth)
    return InversionRun(settings, len(images), found, images, order, quality, seconds)


def check_run(
    folder: Path,
    image_shape: ImageShape,
    truth: Float[Tensor, "batch channels height width"] | None,
) -> None:
    """Try whatever comes after the search, as far as that can be: a search may take hours.

    Args:
        folder: Where the pictures go.
        image_shape: Channels, height and width.
        truth: The true images, if the pictures are to be scored.

    Raises:
        LabelLeakError: Pillow or torchmetrics is not installed.
        UnreadableFile: The folder cannot be written to.
        ValueError: There are neither one nor three channels.
    """
    png(torch.zeros(image_shape))
    if truth is not None:
        assess(truth[:1], truth[:1])
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise UnreadableFile(f"{folder}: cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnreadableFile(f"{folder}: cannot be written: no permission for {parent}")


def write_run(
    folder: Path,
    images: Float[Tensor, "batch channels height width"],
    record: Mapping[str, Any],
) -> Path:
    """Write ``images.png`` (all images), ``image-000.png`` and so on, and ``record.json``.

    Args:
        folder: Where to; made if it is not there.
        images: Pixels from 0 to 1.
        record: What `InversionRun.as_dict` gives.

    Returns:
        The picture of all images.

    Raises:
        UnreadableFile: The folder cannot be written to.
    """
    pictures = {f"image-{place:03}.png": png(image) for place, image in enumerate(images)}
    pictures["images.png"] = png(grid(images))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture)
    except OSError as error:
        raise UnreadableFile(f"{folder}: cannot be written: {error.strerror}") from None
    write_json(folder / "record.json", record)
    return folder / "images.png"
