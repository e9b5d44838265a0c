"""A loaded data set: labeled images or other inputs in memory, or photographs decoded on demand."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

# Random crops as usual in ImageNet training: share of the area, aspect ratio, attempts.
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
# Without a random crop: the center square, as a share of the shorter side (resize to 256, cut 224).
_CENTER = 224 / 256


class Photographs:
    """Photographs decoded on demand, because together they do not fit in memory.

    Attributes:
        shape: `(samples, 3, size, size)`, the shape of a tensor of all of them.
    """

    def __init__(self, open_image: "Callable[[int], Image.Image]", count: int, size: int):
        """Describe the photographs without opening any.

        Args:
            open_image: returns photograph number i as a decoded RGB Pillow image.
            count: number of photographs.
            size: side of the square that is cut out of each, pixels.
        """
        self._open = open_image
        self.shape = (count, 3, size, size)

    def __len__(self) -> int:
        return self.shape[0]

    def subset(self, indices: Int64[Tensor, " part"]) -> "Photographs":
        """Some of them, in this order; none is opened."""
        places = indices.tolist()
        return Photographs(lambda index: self._open(places[index]), len(places), self.shape[2])

    def decode(
        self, index: int, augment: torch.Generator | None = None
    ) -> UInt8[Tensor, "3 size size"]:
        """Decode one photograph.

        Args:
            index: which one, 0 to `len(self) - 1`.
            augment: None: the shorter side is resized to 256/224 of `size` and the center is
                cut out. A generator: a random crop of 8 to 100 % of the area with an aspect
                ratio of 3/4 to 4/3, resized to `size`, and flipped left to right with probability
                1/2; the usual augmentation of ImageNet training. Every photograph takes the same
                number of draws.

        Returns:
            RGB pixels, 0 to 255.

        Raises:
            UnreadableFile: it is not an image, or a broken one.
        """
        from PIL import Image

        size = self.shape[2]
        image = self._open(index)
        width, height = image.size
        box: tuple[float, float, float, float]
        if augment is None:
            # Pillow cuts and resizes in one step. With whole offsets, a photograph whose shorter
            # side is 256 is only cut, not blurred.
            side = min(width, height) * _CENTER
            left, top = round((width - side) / 2), round((height - side) / 2)
            box = (left, top, min(left + side, width), min(top + side, height))
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        else:
            box, flip = _random_crop(width, height, augment)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def _random_crop(
    width: int, height: int, generator: torch.Generator
) -> tuple[tuple[float, float, float, float], bool]:
    """Draw (left, top, right, bottom) of a crop, and whether to flip it."""
    attempts = torch.rand(_CROP_ATTEMPTS, 2, generator=generator).tolist()
    across, down, flip = torch.rand(3, generator=generator).tolist()
    low, high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    for area_draw, ratio_draw in attempts:
        area = width * height * (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            break
    else:
        crop_width = crop_height = min(width, height)
    left, top = (width - crop_width) * across, (height - crop_height) * down
    # min: by rounding the box could exceed the image, which Pillow refuses
    right, bottom = min(left + crop_width, width), min(top + crop_height, height)
    return (left, top, right, bottom), flip < 0.5


class UncheckedSamples(NamedTuple):
    """The result of a reader, not yet checked against the data set that it should be.

    Attributes:
        images: pixels 0 to 255, or photographs decoded on demand.
        labels: class of each image.
        class_names: in the order of the class indices; None if the format has none.
    """

    images: UInt8[np.ndarray, "samples channels height width"] | Photographs
    labels: Int64[np.ndarray, " samples"]
    class_names: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images and their normalization, or other inputs that go to a network as they are.

    For another normalization (such as that of a downloaded classifier), use
    `dataclasses.replace(dataset, mean=..., std=...)`.

    Attributes:
        name: name of the data that was actually loaded, for records.
        images: uint8 pixels (samples, channels, height, width), or photographs decoded lazily; or
            other inputs, float32 or int64 (tokens), shape (samples, ...).
        labels: int64 class of each image, 0 to `classes - 1`.
        classes: number of classes C.
        class_names: C names in the order of the class indices; None if unknown.
        mean: of each channel, on the scale of pixels 0 to 1; empty where inputs are no images.
        std: standard deviation of each channel, on the same scale.
        label_sets: zeros and ones for every label of each image, -1 where one is left out, int64;
            None where the targets are the classes.
        one_logit: whether a network for it has one logit for its two classes.

    Raises:
        ValueError: the parts do not fit together.

    Examples:
        >>> from labelleak.lab import datasets
        >>> digits = datasets.load("mnist-sample")
        >>> digits.classes, digits.image_shape
        (10, (1, 28, 28))
    """

    name: str
    images: (
        UInt8[Tensor, "images channels height width"]
        | Photographs
        | Float32[Tensor, "images ..."]
        | Int64[Tensor, "images ..."]
    ) = field(repr=False)
    labels: Int64[Tensor, " samples"] = field(repr=False)
    classes: int
    class_names: tuple[str, ...] | None = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_sets: Int64[Tensor, "samples labels"] | None = field(default=None, repr=False)
    one_logit: bool = False

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images, but {len(self.labels)} labels")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise ValueError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, "
                f"but there are {self.classes} classes (0 to {self.classes - 1})"
            )
        channels = self.images.shape[1] if self.has_images else 0
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std must have one number for each of {channels} channels")
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std must be positive, not {self.std}")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names, but {self.classes} classes")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_images(self) -> bool:
        """Whether the inputs are images, which are normalized."""
        return isinstance(self.images, Photographs) or self.images.dtype == torch.uint8

    @property
    def has_tokens(self) -> bool:
        """Whether the inputs are integers that stand for something, and cannot be computed with."""
        return isinstance(self.images, Tensor) and self.images.dtype == torch.int64

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.images.shape[1:])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image, pixels.

        Raises:
            ValueError: The inputs are no images.
        """
        if not self.has_images:
            raise ValueError(
                f"{self.name} has inputs of shape {self.input_shape}, and images are needed"
            )
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def targets(self) -> Int64[Tensor, "samples *labels"]:
        """What a network learns of each image: its class, or its label set."""
        return self.labels if self.label_sets is None else self.label_sets

    @property
    def counted(self) -> int:
        """Number of classes, or of labels, that a batch has counts of."""
        return self.classes if self.label_sets is None else self.label_sets.shape[1]

    @property
    def outputs(self) -> int:
        """Number of logits of a network for it."""
        return 1 if self.one_logit else self.counted

    @property
    def lazy(self) -> bool:
        """Whether images are photographs decoded on demand; only those can be augmented."""
        return isinstance(self.images, Photographs)

    def subset(self, indices: Int64[Tensor, " part"], name: str) -> "Dataset":
        """A data set of some of the samples, with the same classes.

        Args:
            indices: The samples, in this order, int64.
            name: Name of the new data set, for records and trained networks.

        Returns:
            The data set; it has no access to the other samples, unless they are photographs.
        """
        images, sets = self.images, self.label_sets
        some = images.subset(indices) if isinstance(images, Photographs) else images[indices]
        return replace(
            self,
            name=name,
            images=some,
            labels=self.labels[indices],
            label_sets=None if sets is None else sets[indices],
        )

    def relabeled(self, name: str, targets: Int64[Tensor, "samples *labels"]) -> "Dataset":
        """The same images with other targets.

        Args:
            name: Name of the new data set, for records and trained networks.
            targets: zeros and ones for one logit, shape (samples,), which become the classes; or
                label sets, shape (samples, labels), beside the classes.

        Returns:
            The data set.
        """
        if targets.ndim == 2:
            return replace(self, name=name, label_sets=targets)
        return replace(self, name=name, labels=targets, classes=2, class_names=None, one_logit=True)

    def batch(
        self, indices: Int64[Tensor, " batch"], augment: torch.Generator | None = None
    ) -> tuple[
        Float32[Tensor, "batch ..."] | Int64[Tensor, "batch ..."], Int64[Tensor, "batch *labels"]
    ]:
        """Inputs and targets, ready for a network.

        Args:
            indices: the samples, in this order; repetitions are allowed.
            augment: generator for random crops and flips of each photograph, so that a repeated
                photograph gives different inputs; None for the center crop.

        Returns:
            inputs: (pixel / 255 - mean) / std of images; others as they are.
            targets: their classes, or their label sets.

        Raises:
            IndexError: an index is not 0 to `len(self) - 1`.
            ValueError: `augment` for a data set that is held in memory.
            UnreadableFile: a photograph is not an image, or a broken one.
        """
        if augment is not None and not self.lazy:
            raise ValueError(
                f"{self.name} is held in memory at its own size: only lazily decoded photographs "
                "are augmented, leave augment out"
            )
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(
                f"indices run from {indices.min()} to {indices.max()}, "
                f"but {self.name} has {len(self)} samples"
            )
        if not self.has_images:
            assert isinstance(self.images, Tensor), "photographs are images"
            return self.images[indices], self.targets[indices]
        if isinstance(self.images, Photographs):
            pixels = torch.empty((len(indices), *self.image_shape), dtype=torch.uint8)
            for row, index in enumerate(indices.tolist()):
                pixels[row] = self.images.decode(index, augment)
        else:
            pixels = self.images[indices]
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        inputs = pixels.to(torch.float32).div_(255).sub_(mean).div_(std)
        return inputs, self.targets[indices]

    def stream(
        self,
        indices: Int64[Tensor, " batch"],
        chunk: int = 64,
        augment: torch.Generator | None = None,
    ) -> Iterator[
        tuple[
            Float32[Tensor, "chunk ..."] | Int64[Tensor, "chunk ..."],
            Int64[Tensor, "chunk *labels"],
        ]
    ]:
        """The same as `batch` in chunks, so that a large batch is never in memory as a whole.

        Args:
            indices: as for `batch`.
            chunk: largest number of samples in one chunk.
            augment: as for `batch`; `chunk` does not change the inputs.

        Yields:
            (inputs, targets) of at most `chunk` samples, in the order of `indices`.

        Raises:
            ValueError: `chunk` is not positive; and what `batch` raises.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        for start in range(0, len(indices), chunk):
            yield self.batch(indices[start : start + chunk], augment)
