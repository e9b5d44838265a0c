"""The mean embedding by least squares over the gradient's rows, and the head applied to it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SMALL_HEAD = 1 << 22
"""Most entries of a head for which everything is computed in float64: 32 MB."""

BLOCK = 1 << 23
"""Entries in one block of rows: larger blocks cost memory, smaller ones leave threads waiting."""


def regress(
    weight_gradient: Float[Tensor, "classes features"],
    bias_gradient: Float[Tensor, " classes"],
    replicates: int,
    *,
    double: bool,
    block: int = BLOCK,
) -> tuple[Float[Tensor, "features estimates"], float]:
    """The mean embedding by least squares, sums of residuals with random signs, and the noise.

    Noise in the regressor adds its variance to the sum of squares (errors in variables). It is
    subtracted again, down to a tenth of the sum.

    Args:
        weight_gradient: Shape (classes, features), any floating dtype.
        bias_gradient: float64, shape (classes,).
        replicates: Number of sums with random signs.
        double: Whether to compute in float64 even if the gradient is float32.
        block: Entries in one block of rows.

    Returns:
        The estimate (column 0) and the sums, float64, shape (features, 1 + replicates); and the
        standard deviation of independent noise in an entry, from the sums over the classes, which
        are zero without noise.
    """
    classes, features = weight_gradient.shape
    centered = bias_gradient - bias_gradient.mean()
    squares = float(centered.square().sum())
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (replicates, classes), generator=generator, dtype=torch.int8)
    signs = signs.to(bias_gradient.device)

    # One pass computes the estimate, its replicates, and the sums over the classes.
    sums = torch.zeros(replicates + 2, features, dtype=torch.float64, device=centered.device)
    shared = torch.zeros(replicates, dtype=torch.float64, device=centered.device)
    for rows in _blocks(weight_gradient.shape, block):
        signed = 2.0 * signs[:, rows].to(centered) - 1.0
        shared += signed @ centered[rows]
        factors = torch.cat([centered[rows][None], signed, torch.ones_like(centered[rows])[None]])
        part = weight_gradient[rows]
        part = part.double() if double or part.dtype != torch.float32 else part
        sums += factors.to(part.dtype) @ part
    noise = float(sums[-1].norm()) / math.sqrt(classes * features)
    norm = max(squares - (classes - 1) * noise**2, 0.1 * squares)
    estimate = sums[:1] / norm
    residuals = sums[1:-1] - shared[:, None] * estimate
    return torch.cat([estimate, residuals]).T, noise


def noisy_rows(
    embedding: Float[Tensor, "features 1"], noise: float, rows: int
) -> Float[Tensor, "features rows"]:
    """Draws of a row's residual that noise in weight and bias gradient makes."""
    generator = torch.Generator().manual_seed(6)
    draws = torch.randn(len(embedding) + 1, rows, generator=generator, dtype=torch.float64)
    draws = draws.to(embedding)
    return noise * (draws[1:] - embedding * draws[:1])


def apply_weight(
    weight: Float[Tensor, "classes features"],
    embeddings: Float[Tensor, "features estimates"],
    *,
    double: bool,
    block: int = BLOCK,
) -> Float[Tensor, "classes estimates"]:
    """Weight times embeddings, float64, block by block; `double` and `block` as for `regress`."""
    logits = embeddings.new_empty(weight.shape[0], embeddings.shape[1])
    single = embeddings.float()
    for rows in _blocks(weight.shape, block):
        part = weight[rows]
        if double or part.dtype != torch.float32:
            logits[rows] = part.double() @ embeddings
        else:
            logits[rows] = (part @ single).double()
    return logits


def _blocks(shape: torch.Size, entries: int) -> list[slice]:
    step = max(1, entries // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]
