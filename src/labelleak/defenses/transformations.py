"""What a client does to its gradients before it sends them, in the clear or on a grid."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gaussian_noise(
    gradients: Mapping[str, Tensor], std: float, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Add independent noise of N(0, std^2) to every entry.

    The noise step of DP-SGD (Abadi et al., CCS 2016, arXiv:1607.00133) without its clipping, as in
    Ma et al., ICLR 2023, figure 5; differential privacy takes both and an account of them.

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        std: Standard deviation in the unit of the gradients, at least 0.
        generator: Source of the noise, on any device; the tensors draw from it in their order.

    Returns:
        The noisy gradients by name.

    Raises:
        ValueError: `std` is negative or not finite, or a gradient is not floating, finite and
            non-empty.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> noisy = gaussian_noise(gradients, 0.01, generator=torch.Generator().manual_seed(0))
        >>> bool((noisy["fc.weight"] - gradients["fc.weight"]).abs().max() < 0.05)
        True
    """
    check_gradients(gradients)
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std {std}: it must be finite and at least 0")
    noisy = {}
    for name, tensor in gradients.items():
        noise = torch.randn(
            tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device
        )
        noisy[name] = tensor + std * noise.to(tensor.device)
    return noisy


def clip_norm(
    gradients: Mapping[str, Tensor], max_norm: float, *, per_tensor: bool = False
) -> dict[str, Tensor]:
    """Scale the gradients down to a Euclidean norm of at most `max_norm`.

    ``g * min(1, max_norm / ||g||)`` as in DP-SGD (Abadi et al., CCS 2016, arXiv:1607.00133), here
    of the whole update; per tensor as "per-layer clipping" there and in McMahan et al., ICLR 2018
    (arXiv:1710.06963). Gradients that are small enough are returned as they are.

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        max_norm: Largest norm to let through, in the unit of the gradients, positive.
        per_tensor: Whether each tensor is held to `max_norm` on its own, instead of all together.

    Returns:
        The clipped gradients by name.

    Raises:
        ValueError: `max_norm` is not positive and finite, or a gradient is not floating, finite and
            non-empty.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> clipped = clip_norm(gradients, 0.5)
        >>> round(float(clipped["fc.weight"].norm()), 6)
        0.5
    """
    check_gradients(gradients)
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"max_norm {max_norm}: it must be finite and positive")
    norms = {
        name: float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
        for name, tensor in gradients.items()
    }
    total = math.hypot(*norms.values())
    clipped = {}
    for name, tensor in gradients.items():
        norm = norms[name] if per_tensor else total
        clipped[name] = tensor * (max_norm / norm) if norm > max_norm else tensor.clone()
    return clipped


def sparsify(
    gradients: Mapping[str, Tensor],
    percent: float,
    *,
    scope: Literal["tensor", "global"] = "tensor",
) -> dict[str, Tensor]:
    """Set the entries of smallest magnitude to zero.

    Those below the given percentile of all magnitudes (linear interpolation, as
    ``numpy.percentile``) go, and entries equal to it stay. Per tensor as in Ma et al., ICLR 2023,
    figure 5; over all tensors as in Aji and Heafield, EMNLP 2017 (arXiv:1704.05021).

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        percent: The percentile, from 0 (nothing goes) to 100 (only the largest magnitude stays).
        scope: ``"tensor"``: a percentile of each tensor. ``"global"``: one of all tensors together.

    Returns:
        The pruned gradients by name.

    Raises:
        ValueError: `percent` or `scope` is none of these, or a gradient is not floating, finite and
            non-empty.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> sparsify(gradients, 50)["fc.weight"].count_nonzero().item()
        2
    """
    check_gradients(gradients)
    check_percent(percent)
    if scope not in ("tensor", "global"):
        raise ValueError(f"scope {scope!r}: choose 'tensor' or 'global'")
    if scope == "tensor":
        return {
            name: tensor.masked_fill(below(tensor.abs().flatten(), percent).view_as(tensor), 0.0)
            for name, tensor in gradients.items()
        }
    device = next(iter(gradients.values())).device
    magnitudes = torch.cat([tensor.abs().flatten().to(device) for tensor in gradients.values()])
    sizes = [tensor.numel() for tensor in gradients.values()]
    masks = torch.split(below(magnitudes, percent), sizes)
    return {
        name: tensor.masked_fill(mask.view_as(tensor).to(tensor.device), 0.0)
        for (name, tensor), mask in zip(gradients.items(), masks, strict=True)
    }


def below(magnitudes: Float[Tensor, " entries"], percent: float) -> Bool[Tensor, " entries"]:
    """Which entries lie below the percentile of all.

    The percentile lies between two neighbors in order, so what is below it is what is below the
    upper neighbor, or below the lower one where it meets that exactly. Selecting that neighbor
    needs no interpolation, and has no limit of size as `torch.quantile` has.
    """
    upper = math.ceil(percent * (magnitudes.numel() - 1) / 100)
    return magnitudes < magnitudes.kthvalue(upper + 1).values


def sign(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Send the sign of every entry: -1, 0 or 1.

    signSGD (Bernstein et al., ICML 2018, arXiv:1802.04434).

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.

    Returns:
        The signs by name.

    Raises:
        ValueError: A gradient is not floating, finite and non-empty.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> sign(gradients)["fc.weight"].tolist()
        [[1.0, -1.0], [1.0, 1.0]]
    """
    check_gradients(gradients)
    return {name: tensor.sign() for name, tensor in gradients.items()}


def quantize(
    gradients: Mapping[str, Tensor], bits: int, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Round every tensor to a uniform grid of signed integers of so many bits.

    The grid has ``2**bits - 1`` points from -max|g| to max|g|, zero among them. Stochastic rounding
    goes up or down with the probabilities that make the mean right, as in QSGD (Alistarh et al.,
    NeurIPS 2017, arXiv:1610.02132) with the largest magnitude in place of the Euclidean norm; with
    2 bits that is TernGrad (Wen et al., NeurIPS 2017, arXiv:1705.07878).

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        bits: Bits of one entry, 2 to 16 (`sign` is the defense of one bit).
        generator: Source of the stochastic rounding, on any device; None to round to the nearest.

    Returns:
        The gradients on the grid by name. The error is at most half a step of the grid, a whole one
        if stochastic, where a step is ``max|g| / (2**(bits - 1) - 1)``; to that comes the rounding
        to a dtype of fewer bits than asked for.

    Raises:
        ValueError: `bits` is out of range, or a gradient is not floating, finite and non-empty.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> [[round(x, 3) for x in row] for row in quantize(gradients, 2)["fc.weight"].tolist()]
        [[0.0, -0.0], [0.0, 0.8]]
    """
    check_gradients(gradients)
    if not 2 <= bits <= 16:
        raise ValueError(f"{bits} bits: choose 2 to 16")
    levels = 2 ** (bits - 1) - 1
    return {name: _rounded(tensor, levels, generator) for name, tensor in gradients.items()}


def _rounded(tensor: Tensor, levels: int, generator: torch.Generator | None) -> Tensor:
    largest = float(tensor.abs().max())
    if largest == 0:
        return tensor.clone()
    steps = tensor.to(torch.float64, copy=True).div_(largest).mul_(levels)
    if generator is None:
        steps.round_()
    else:
        lift = torch.rand(
            tensor.shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        steps.add_(lift.to(tensor.device)).floor_()
    # Dividing first makes the outermost points equal the largest magnitude exactly.
    return steps.div_(levels).mul_(largest).to(tensor.dtype)


def check_percent(percent: float) -> None:
    """Refuse what is no percentage.

    Raises:
        ValueError: It is below 0 or above 100.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent}: it must be from 0 to 100")


def check_gradients(gradients: Mapping[str, Tensor]) -> None:
    """Refuse gradients that no defense can work on.

    Raises:
        ValueError: There is none, or one is not floating, finite and non-empty.
    """
    if not gradients:
        raise ValueError("there are no gradients to defend")
    for name, tensor in gradients.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"gradient {name!r} is {tensor.dtype}: floating-point numbers are needed"
            )
        if not tensor.numel():
            raise ValueError(f"gradient {name!r} has no entries")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"gradient {name!r} has NaN or infinite entries")
