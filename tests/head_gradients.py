"""Gradients of a head, and one of every defense."""

from functools import partial

import pytest
import torch

from labelleak.defenses import (
    clip_norm,
    gaussian_noise,
    quantize,
    sign,
    soteria,
    sparsify,
)
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import told


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def head_gradients(dtype=torch.float32):
    """Gradients of a head as cross-entropy makes them: they sum to zero over the classes."""
    logits = torch.randn(16, 5, generator=rng(1), dtype=torch.float64)
    labels = torch.randint(5, (16,), generator=rng(2))
    errors = logits.softmax(1) - torch.nn.functional.one_hot(labels, 5)
    embeddings = torch.rand(16, 7, generator=rng(3), dtype=torch.float64)
    return {
        "fc.weight": (errors.T @ embeddings / 16).to(dtype),
        "fc.bias": errors.mean(0).to(dtype),
    }


DEFENSES = {
    "noise": lambda gradients: gaussian_noise(gradients, 0.1, generator=rng()),
    "clip": partial(clip_norm, max_norm=0.01),
    "clip per tensor": partial(clip_norm, max_norm=0.01, per_tensor=True),
    "clip nothing": partial(clip_norm, max_norm=1e6),
    "sparsify": partial(sparsify, percent=60),
    "sparsify globally": partial(sparsify, percent=60, scope="global"),
    "sign": sign,
    "quantize": partial(quantize, bits=4),
    "quantize stochastically": lambda gradients: quantize(gradients, 4, generator=rng()),
    "soteria": partial(soteria, mask=torch.arange(7) > 2, weight_name="fc.weight"),
}


every_defense = pytest.mark.parametrize("defense", DEFENSES.values(), ids=DEFENSES)


def observation(**more):
    gradients = head_gradients()
    return Observation(
        head=Head(torch.zeros(5, 7), torch.zeros(5), name="fc"),
        gradient=HeadGradient(gradients["fc.weight"], gradients["fc.bias"]),
        **told(**more),
    )
