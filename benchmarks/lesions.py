"""Synthetic lesions: grainy images with one brighter disk each, and networks that segment them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE, SAMPLES = 48, 6
# How much brighter the disk is, and how far radii are apart.
_BRIGHTER, _LEAST_RADIUS, _RADII = 0.4, 0.8, 0.4


def lesions(share: float, seed: int, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Images, and masks of zeros and ones, both of shape (samples, 1, SIDE, SIDE).

    Args:
        share: Of the pixels that are in a lesion, about.
        seed: Of grain, radii and places.
        samples: How many.
    """
    random = torch.Generator().manual_seed(seed)
    grain = torch.randn(samples, 1, SIDE, SIDE, generator=random)
    images = 0.9 * functional.avg_pool2d(grain, 5, 1, 2) + 0.5
    down, across = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    masks = torch.zeros_like(images)
    for mask in masks:
        factor = _LEAST_RADIUS + _RADII * float(torch.rand(1, generator=random))
        radius = SIDE * math.sqrt(share / math.pi) * factor
        middle = radius + (SIDE - 2 * radius) * torch.rand(2, generator=random)
        mask[0] = ((down - middle[0]) ** 2 + (across - middle[1]) ** 2 < radius**2).float()
    return images + _BRIGHTER * masks, masks


def tissues(images: Tensor, masks: Tensor) -> Tensor:
    """Maps of three classes: no lesion, a lesion, and its brightest part; (samples, SIDE, SIDE)."""
    return (masks[:, 0] * (1 + (images[:, 0] > 1.0))).long()


def segmenter(seed: int, outputs: int = 1) -> nn.Sequential:
    """Two 3x3 convolutions and a 1x1 convolution as the head, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, outputs, 1),
        )
    return layers.eval()
