"""Run one inversion: time it, score it against the true images, and write it to files."""

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
    """How images are sought for. The fields are arguments of `labelleak.inversion.invert`."""

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
    """An inversion and its score.

    Attributes:
        settings: How the images were sought for.
        batch_size: Number of images.
        found: Result of the search.
        images: The images of `found`, in the order of the true images where these are known.
        order: ``images[i]`` is ``found.images[order[i]]``; int64, shape (batch,). None where the
            true images are not known.
        quality: Scores of `images`; None where the true images are not known.
        seconds: Time that the search took, in seconds.
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
        """The record of the run as plain data, of the schema ``labelleak/inversion/1``.

        Args:
            source: The files that the run started from.
            network: Name and options of the network.
            device: The device that it ran on.
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
    """Find the images that an update gives away, and compare them with the true ones.

    The search never sees the true images: they are only compared with its result.

    Args:
        observation: What the server sees, with the model, all its gradients and the batch size.
        settings: How the images are sought for.
        labels: True class of each image, int64, shape (batch,). The search uses them in the mode
            ``given`` alone. With `truth` they keep the match within a class.
        truth: The true images, pixels from 0 to 1.
        progress: Called now and then with the restart, the iteration and the distance.

    Returns:
        The images and their scores.

    Raises:
        MissingKnowledge: The observation lacks something, or the attack restores no counts.
        InvalidObservation: The gradient is of another network, or shapes do not fit.
        LabelLeakError: The distance became NaN in every restart, or torchmetrics is missing.
        ValueError: The mode is ``given``, and there are no labels.
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
    """Check before a search, which may take hours, that its result can be scored and written.

    Args:
        folder: Where the pictures will go.
        image_shape: Channels, height and width.
        truth: The true images, if the pictures are to be scored.

    Raises:
        LabelLeakError: Pillow or torchmetrics is missing.
        UnreadableFile: The folder cannot be written to.
        ValueError: The images have neither one nor three channels.
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
        folder: The folder; made if it does not exist.
        images: Pixels from 0 to 1.
        record: What `InversionRun.as_dict` gives.

    Returns:
        The path of ``images.png``.

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
