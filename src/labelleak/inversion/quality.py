"""Match restored images with the true ones, and score them: PSNR, SSIM and LPIPS."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from labelleak.errors import LabelLeakError

_SSIM_WINDOW = 11
_LPIPS_WEIGHTS = "vgg16-*.pth"


@dataclass(frozen=True)
class Quality:
    """Scores of matched images, each in the order of the true ones.

    Attributes:
        psnr: Peak signal-to-noise ratio of each image in dB, with peak 1; infinite for equal
            images.
        ssim: Structural similarity of each image, at most 1; None for images under 11 pixels.
        lpips: Perceptual distance (VGG) of each image, at least 0; None where the weights of that
            network are not at hand.

    Examples:
        >>> quality = Quality(psnr=(20.0, 30.0), ssim=None, lpips=None)
        >>> quality.mean("psnr"), quality.best(1), quality.mean("ssim")
        (25.0, (1,), None)
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...] | None
    lpips: tuple[float, ...] | None

    def mean(self, name: str, indices: tuple[int, ...] | None = None) -> float | None:
        """The mean of one score.

        Args:
            name: ``psnr``, ``ssim`` or ``lpips``.
            indices: Indices of the true images to average over; None for all.

        Returns:
            The mean, or None where that score is None.
        """
        values = getattr(self, name)
        if values is None:
            return None
        return statistics.fmean(values if indices is None else [values[i] for i in indices])

    def best(self, number: int) -> tuple[int, ...]:
        """Indices of the true images with the highest PSNR, best first."""
        ranked = sorted(range(len(self.psnr)), key=lambda index: -self.psnr[index])
        return tuple(ranked[:number])

    def as_dict(self) -> dict[str, Any]:
        """The scores as plain data; an infinite PSNR is null, as JSON has no infinity."""
        return {
            "psnr": [value if math.isfinite(value) else None for value in self.psnr],
            "ssim": None if self.ssim is None else list(self.ssim),
            "lpips": "not available" if self.lpips is None else list(self.lpips),
        }


def match(
    images: Float[Tensor, "batch channels height width"],
    truth: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | None = None,
    true_labels: Int[Tensor, " batch"] | None = None,
) -> Int[Tensor, " batch"]:
    """Assign restored images to the true ones with the least squared error (Hungarian method).

    With labels on both sides, images are matched within their class first. Images that are left
    over, as where a label is wrong, are matched across classes.

    Args:
        images: Restored images, pixels from 0 to 1.
        truth: The true images.
        labels: Class of each restored image, int64, shape (batch,), where the search fixed it.
        true_labels: Class of each true image, int64, shape (batch,).

    Returns:
        ``order``, int64, shape (batch,), on the CPU: ``images[order[i]]`` belongs to ``truth[i]``.

    Raises:
        ValueError: The two batches differ in shape, or only one side has labels.

    Examples:
        >>> truth = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]
        >>> match(truth[[2, 0, 1]] + 0.1, truth).tolist()
        [1, 2, 0]
    """
    if images.shape != truth.shape:
        raise ValueError(f"images {tuple(images.shape)} and truth {tuple(truth.shape)} differ")
    if (labels is None) != (true_labels is None):
        raise ValueError("labels are needed on both sides, or on none")
    true, found = (
        truth.detach().double().cpu().flatten(1),
        images.detach().double().cpu().flatten(1),
    )
    cost = torch.cdist(true, found, compute_mode="donot_use_mm_for_euclid_dist").square_()
    if labels is not None and true_labels is not None:
        # More than any assignment can cost: as few pairs across classes as possible.
        penalty = 1.0 + len(cost) * float(cost.max())
        cost += penalty * (true_labels.cpu()[:, None] != labels.cpu()[None, :])
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns).long()


def assess(
    images: Float[Tensor, "batch channels height width"],
    truth: Float[Tensor, "batch channels height width"],
) -> Quality:
    """PSNR, SSIM and LPIPS of matched images, as torchmetrics computes them.

    Args:
        images: Restored images in the order that `match` gives, pixels from 0 to 1.
        truth: The true images, of the same shape.

    Returns:
        The scores of each pair.

    Raises:
        LabelLeakError: torchmetrics is not installed.
        ValueError: The two batches differ in shape.

    Examples:
        >>> truth = torch.full((1, 1, 4, 4), 0.5)
        >>> round(assess(truth + 0.1, truth).psnr[0], 3)
        20.0
    """
    try:
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )
    except ModuleNotFoundError as error:
        raise LabelLeakError(
            f"scores of images need {error.name}: pip install 'labelleak[images]'"
        ) from None
    if images.shape != truth.shape:
        raise ValueError(f"images {tuple(images.shape)} and truth {tuple(truth.shape)} differ")
    images, truth = images.detach().double().cpu(), truth.detach().double().cpu()
    pairs = [(images[i : i + 1], truth[i : i + 1]) for i in range(len(truth))]
    psnr = tuple(float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in pairs)
    ssim = None
    if min(truth.shape[2:]) >= _SSIM_WINDOW:
        scores = (structural_similarity_index_measure(a, b, data_range=1.0) for a, b in pairs)
        ssim = tuple(float(value) for value in scores if isinstance(value, Tensor))
    perceptual = _lpips()
    return Quality(
        psnr=psnr,
        ssim=ssim,
        lpips=None if perceptual is None else tuple(perceptual(images.float(), truth.float())),
    )


def _lpips() -> Callable[[Tensor, Tensor], list[float]] | None:
    """LPIPS with VGG, if its weights are on this machine; else None."""
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torchvision") is None or not list(checkpoints.glob(_LPIPS_WEIGHTS)):
        return None
    try:
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    except (ImportError, RuntimeError):  # A torchvision that does not fit this PyTorch.
        return None

    def score(images: Tensor, truth: Tensor) -> list[float]:
        color = (3 // images.shape[1]) if images.shape[1] in (1, 3) else 1
        pairs = zip(images.repeat(1, color, 1, 1), truth.repeat(1, color, 1, 1), strict=True)
        return [
            float(
                learned_perceptual_image_patch_similarity(
                    a[None], b[None], net_type="vgg", normalize=True
                )
            )
            for a, b in pairs
        ]

    return score
