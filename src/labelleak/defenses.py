"""What a client may do to an update before it sends it, to give away less.

A defence is a function from gradients by name to gradients by the same names. Those here take their
strength as further arguments: bind them with `functools.partial` to hand a defence around. Inputs
are never modified; dtypes and devices stay as they are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.hooks import recorded
from labelleak.numerics import root_mean_square
from labelleak.observation import HeadGradient, Observation

Defense = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A function from gradients by parameter name to what is sent in their place."""


def defend(observation: Observation, defense: Defense) -> Observation:
    """What the server sees if the client applies a defence.

    Where the observation holds the whole model's gradients, the defence acts on those, as norms and
    percentiles may be over all of them, and the head's gradient is taken from the result. Otherwise
    it acts on the head's gradient alone.

    Args:
        observation: The undefended update.
        defense: The defence, e.g. ``functools.partial(clip_norm, max_norm=1.0)``.

    Returns:
        The same observation with defended gradients.

    Raises:
        InvalidObservation: The head cannot be found among the whole model's gradients, or the
            defence leaves nothing of the head's gradient.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from labelleak import Head, HeadGradient, Observation
        >>> seen = Observation(Head(torch.zeros(2, 1)), HeadGradient(torch.tensor([[3.0], [-4.0]])))
        >>> defend(seen, partial(clip_norm, max_norm=1.0)).gradient.weight.tolist()
        [[0.6000000238418579], [-0.800000011920929]]
    """
    prefix = f"{observation.head.name}." if observation.head.name else ""
    weight, bias = f"{prefix}weight", f"{prefix}bias"
    head = {weight: observation.gradient.weight}
    if observation.gradient.bias is not None:
        head[bias] = observation.gradient.bias
    given = head if observation.gradients is None else observation.gradients
    missing = [name for name in head if name not in given]
    if missing:
        raise InvalidObservation(
            f"the whole model's gradients lack {' and '.join(missing)}: give the head its name in "
            "the model (Head(..., name='fc')) or leave the gradients out"
        )
    defended = dict(defense(given))
    # The rounding errors made before the defense remain, scaled as the defense scales.
    before = root_mean_square(observation.gradient.weight)
    shrinkage = min(1.0, root_mean_square(defended[weight]) / before) if before else 1.0
    gradient = HeadGradient(defended[weight], defended[bias] if bias in head else None)
    rounding = max(gradient.rounding, shrinkage * observation.gradient.rounding)
    return replace(
        observation,
        gradient=replace(gradient, rounding=rounding),
        gradients=None if observation.gradients is None else defended,
        after=None,  # it would give the undefended update away
    )


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

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> noisy = gaussian_noise(gradients, 0.01, generator=torch.Generator().manual_seed(0))
        >>> bool((noisy["fc.weight"] - gradients["fc.weight"]).abs().max() < 0.05)
        True
    """
    _check(gradients)
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

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> clipped = clip_norm(gradients, 0.5)
        >>> round(float(clipped["fc.weight"].norm()), 6)
        0.5
    """
    _check(gradients)
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

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> sparsify(gradients, 50)["fc.weight"].count_nonzero().item()
        2
    """
    _check(gradients)
    _check_percent(percent)
    if scope not in ("tensor", "global"):
        raise ValueError(f"scope {scope!r}: choose 'tensor' or 'global'")
    if scope == "tensor":
        return {
            name: tensor.masked_fill(_below(tensor.abs().flatten(), percent).view_as(tensor), 0.0)
            for name, tensor in gradients.items()
        }
    device = next(iter(gradients.values())).device
    magnitudes = torch.cat([tensor.abs().flatten().to(device) for tensor in gradients.values()])
    sizes = [tensor.numel() for tensor in gradients.values()]
    masks = torch.split(_below(magnitudes, percent), sizes)
    return {
        name: tensor.masked_fill(mask.view_as(tensor).to(tensor.device), 0.0)
        for (name, tensor), mask in zip(gradients.items(), masks, strict=True)
    }


def _below(magnitudes: Float[Tensor, " entries"], percent: float) -> Bool[Tensor, " entries"]:
    """Which entries lie below the percentile of all.

    The percentile lies between two neighbours in order, so what is below it is what is below the
    upper neighbour, or below the lower one where it meets that exactly. Selecting that neighbour
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

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> sign(gradients)["fc.weight"].tolist()
        [[1.0, -1.0], [1.0, 1.0]]
    """
    _check(gradients)
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
        bits: Bits of one entry, 2 to 16 (`sign` is the defence of one bit).
        generator: Source of the stochastic rounding, on any device; None to round to the nearest.

    Returns:
        The gradients on the grid by name. The error is at most half a step of the grid, a whole one
        if stochastic, where a step is ``max|g| / (2**(bits - 1) - 1)``; to that comes the rounding
        to a dtype of fewer bits than asked for.

    Raises:
        ValueError: `bits` is out of range, or a gradient is not floating, finite and non-empty.

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> [[round(x, 3) for x in row] for row in quantize(gradients, 2)["fc.weight"].tolist()]
        [[0.0, -0.0], [0.0, 0.8]]
    """
    _check(gradients)
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


def soteria_mask(
    model: nn.Module, inputs: Float[Tensor, "batch *shape"], percent: float, head: str
) -> Bool[Tensor, " features"]:
    """Which features of the representation Soteria keeps for a batch.

    A feature is pruned where it says much about the input for little of the input's influence on
    it: the paper prunes those with the largest ``|r| / ||dr/dx||``. Features are ranked here by the
    inverse, which stays finite where the representation r is zero: the sum over the samples of
    ``||dr/dx|| / |r|``, as the code published with the paper has it. Those below the given
    percentile go. Needs one backward pass per feature.

    Args:
        model: A network in evaluation mode, in which no sample influences another, on any device.
        inputs: The batch, floating point, shape (batch, ...).
        percent: Share of the features to prune, from 0 to 100: the percentile of the scores (linear
            interpolation) below which they go.
        head: Name of the final linear layer in the model, such as ``"fc"``; its input is the
            representation, shape (batch, features).

    Returns:
        True for the features to keep, bool, shape (features,), on the device of the inputs.

    Raises:
        ValueError: `percent` is out of range, the model is in training mode, or the head does not
            run once per forward pass on one vector per sample.

    References:
        Sun et al., "Soteria: Provable defense against privacy leakage in federated learning from
        representation perspective", CVPR 2021 (arXiv:2012.06043), algorithm 1.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential()
        >>> model.add_module("body", torch.nn.Linear(6, 4))
        >>> model.add_module("fc", torch.nn.Linear(4, 3))
        >>> mask = soteria_mask(model.eval(), torch.rand(2, 6), 50, head="fc")
        >>> int(mask.sum())
        2
    """
    _check_percent(percent)
    if model.training:
        raise ValueError(
            "the model is in training mode, where samples influence each other: call model.eval()"
        )
    inputs = inputs.detach().requires_grad_()
    with torch.enable_grad(), recorded(model.get_submodule(head)) as runs:
        model(inputs)
    if len(runs) != 1 or runs[0].entered.shape[:-1] != inputs.shape[:1]:
        raise ValueError(
            f"layer {head!r} does not take one vector per sample once: name the final linear layer"
        )
    representation: Tensor = runs[0].entered
    scores = torch.zeros(representation.shape[1], dtype=torch.float64, device=inputs.device)
    for feature, values in enumerate(representation.unbind(dim=1)):
        (slopes,) = torch.autograd.grad(values.sum(), inputs, retain_graph=True)
        norms = torch.linalg.vector_norm(slopes.flatten(1), dim=1, dtype=torch.float64)
        ratios = norms / values.detach().abs().double()
        # A feature that the ReLU switched off has value 0 and slope 0: it scores 0, not NaN.
        scores[feature] = torch.where(norms > 0, ratios, 0.0).sum()
    return ~_below(scores, percent)


def soteria(
    gradients: Mapping[str, Tensor], mask: Bool[Tensor, " features"], weight_name: str
) -> dict[str, Tensor]:
    """Leave pruned features out of the gradient of the final linear layer.

    Soteria changes the representation that enters the final layer, for that layer's gradient alone:
    the columns of pruned features become zero, and everything else stays as it was.

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        mask: The features to keep, bool, shape (features,), see `soteria_mask`.
        weight_name: Name of the final layer's weight, such as ``"fc.weight"``, whose gradient has
            shape (classes, features).

    Returns:
        The defended gradients by name.

    Raises:
        ValueError: No gradient of that name, the mask does not fit it, or a gradient is not
            floating, finite and non-empty.

    References:
        Sun et al., CVPR 2021 (arXiv:2012.06043), algorithm 1.

    Example:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> kept = torch.tensor([True, False])
        >>> soteria(gradients, kept, "fc.weight")["fc.weight"][:, 1].tolist()
        [0.0, 0.0]
    """
    _check(gradients)
    if weight_name not in gradients:
        raise ValueError(f"no gradient {weight_name!r}: there are {', '.join(gradients)}")
    weight = gradients[weight_name]
    if mask.dtype != torch.bool or weight.ndim != 2 or mask.shape != weight.shape[1:]:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} and {mask.dtype} for the gradient {weight_name!r} "
            f"of shape {tuple(weight.shape)}: one bool for each of its columns is needed"
        )
    return {
        name: tensor.masked_fill(~mask.to(tensor.device), 0.0)
        if name == weight_name
        else tensor.clone()
        for name, tensor in gradients.items()
    }


def _check_percent(percent: float) -> None:
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent}: it must be from 0 to 100")


def _check(gradients: Mapping[str, Tensor]) -> None:
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
