"""Changes that need the update alone: noise, clipping, sparsification, quantization, the head."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak import defenses
from labelleak.advice.privacy import gaussian_epsilon, noise_for
from labelleak.advice.trials import Change, Judging, Untried, sent_tensors
from labelleak.observation import Observation

# Standard deviations of the noise, relative to a typical entry of the update.
_NOISE = (0.01, 0.1, 1.0)
# Epsilon of the noise that bounds what any attack can tell: weak protection, and strong.
_EPSILONS = (8.0, 1.0)
_CLIPPED_TO = 0.1
_SPARSIFIED = (90.0, 99.0)
_BITS = (8, 4)
_SEED = 0


def treatments(
    judging: Judging, true_counts: Int[Tensor, " classes"] | None
) -> Iterator[Change | Untried]:
    """Try what a site can do to an update that is made already.

    Args:
        judging: The plain update, and how to audit it.
        true_counts: The counts behind it where they are known, int64, shape (classes,).

    Yields:
        Each change.
    """
    plain = judging.plain
    for name, setting, defense, epsilon in _defenses(plain):

        def make(defense: defenses.Defense = defense) -> tuple[Observation, Tensor | None]:
            return defenses.defend(plain, defense), true_counts

        yield judging.try_change(name, setting, make, epsilon)
    if plain.gradient.bias is not None and plain.gradient.has_weight:
        yield judging.try_change(
            "bias kept local",
            "the final layer's bias is not sent",
            lambda: (_without_bias(plain), true_counts),
        )
    yield _without_head(plain)


def _defenses(plain: Observation) -> Iterator[tuple[str, str, defenses.Defense, float | None]]:
    """Name, setting and defense, and the epsilon of noise."""
    squares, entries = 0.0, 0
    for tensor in sent_tensors(plain).values():
        squares += float(tensor.double().square().sum())
        entries += tensor.numel()
    length, typical = math.sqrt(squares), math.sqrt(squares / entries)
    # What bounds the whole vector is many times a typical entry in every one of its entries.
    bounding = (noise_for(epsilon) * math.sqrt(entries) for epsilon in _EPSILONS)
    for share in (*_NOISE, *bounding):
        noise = partial(
            defenses.gaussian_noise,
            std=share * typical,
            generator=torch.Generator().manual_seed(_SEED),
        )
        epsilon = gaussian_epsilon(share * typical / length)
        yield "noise", f"Gaussian, {share:.3g} times a typical entry", noise, epsilon
    clip = partial(defenses.clip_norm, max_norm=_CLIPPED_TO * length)
    yield "clipping", f"to {_CLIPPED_TO:.0%} of its length", clip, None
    for percent in _SPARSIFIED:
        sparse = partial(defenses.sparsify, percent=percent)
        yield "sparsification", f"the largest {100 - percent:g}% of the entries", sparse, None
    for bits in _BITS:
        yield "quantization", f"{bits} bits", partial(defenses.quantize, bits=bits), None
    yield "quantization", "signs alone", defenses.sign, None


def _without_bias(plain: Observation) -> Observation:
    gradients = plain.gradients
    if gradients is not None:
        own = f"{plain.head.name}.bias" if plain.head.name else "bias"
        gradients = {name: tensor for name, tensor in gradients.items() if name != own}
    kept = replace(plain.gradient, bias=None)
    return replace(plain, gradient=kept, gradients=gradients, after=None)


def _without_head(plain: Observation) -> Change:
    """No attack reads an update without its final layer, so there is nothing to run."""
    cosine = None
    if plain.gradients is not None:
        prefix = f"{plain.head.name}." if plain.head.name else ""
        body, head = 0.0, 0.0
        for name, tensor in plain.gradients.items():
            square = float(tensor.double().square().sum())
            is_head = name in (f"{prefix}weight", f"{prefix}bias")
            body, head = body + square * (not is_head), head + square * is_head
        cosine = math.sqrt(body / (body + head)) if body + head else None
    return Change(
        name="head kept local",
        setting="the final layer is not sent",
        cosine=cosine,
        epsilon=None,
        accuracy=None,
        guess=None,
        advantage=None,
        told=None,
        verdict="inconclusive",
        reason="no attack of labelleak reads an update without its final layer; the layers before "
        "it may still tell",
    )
