"""Flags that a gradient raises by itself."""

from functools import partial

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import restore
from labelleak.attacks.diagnosis import defence_suspected, sums_are_zero
from labelleak.observation import HeadGradient
from labelleak.restoration import UNRELIABLE, Flag
from synthetic import rng, untrained

FORMATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def noise(share):
    def add(gradients):
        size = float(gradients["fc.weight"].square().mean().sqrt())
        return defenses.gaussian_noise(gradients, share * size, generator=rng(1))

    return add


DEFENCES = {
    "noise": noise(0.02),
    "sparsify 5 %": partial(defenses.sparsify, percent=5.0),
    "sparsify 80 %": partial(defenses.sparsify, percent=80.0),
    "sign": defenses.sign,
    "2 bits": partial(defenses.quantize, bits=2, generator=rng(2)),
    "8 bits": partial(defenses.quantize, bits=8, generator=rng(2)),
    "8 bits, nearest": partial(defenses.quantize, bits=8),
    "16 bits": partial(defenses.quantize, bits=16, generator=rng(2)),
}


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_defence_is_suspected(defence, dtype):
    for seed in range(3):
        seen = untrained(20, 80, 16, seed, dtype=torch.float32).observe(dtype=dtype)
        assert defence_suspected(defenses.defend(seen, DEFENCES[defence]))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 20.0])
@pytest.mark.parametrize(("classes", "size"), [(2, 1), (2, 40), (10, 1), (10, 64), (200, 8)])
def test_nothing_is_suspected_of_a_gradient_as_it_is(classes, size, scale, dtype):
    """Features that are always zero, one sample, few classes, sure predictions, coarse formats."""
    for seed in range(3):
        batch = untrained(classes, 64, size, seed, scale=scale, spread=1.0)
        assert not defence_suspected(batch.observe(dtype=dtype))


def test_a_difference_of_weights_is_not_pruned_where_it_is_too_small():
    """Steps below half a unit in the last place of a weight leave exact zeros."""
    batch = untrained(20, 64, 8, dtype=torch.float32)
    weight, rate = batch.weight.float(), 1e-6
    moved = weight - rate * batch.gradient(torch.float32).weight
    difference = (weight - moved) / rate
    assert float((difference == 0).double().mean()) > 0.2
    rounding = float((difference - batch.gradient().weight).square().mean().sqrt())
    bias = batch.gradient(torch.float32).bias
    seen = batch.observe(HeadGradient(difference, bias, rounding), dtype=torch.float32)
    assert not defence_suspected(seen) or not sums_are_zero(seen)


def test_weight_decay_is_no_defence():
    batch = untrained(20, 64, 8)
    gradient = batch.gradient()
    decayed = HeadGradient(gradient.weight + 0.01 * batch.weight, gradient.bias + 0.01 * batch.bias)
    seen = batch.observe(decayed)
    assert not sums_are_zero(seen)
    assert not defence_suspected(seen)
    found = restore(seen, "idlg")
    assert Flag.SUMS_NOT_ZERO in found.flags
    assert Flag.DEFENCE_SUSPECTED not in found.flags


def test_what_makes_a_verdict_unreliable():
    """A defence alone does not: clipping is undone, and the audit still counts what came out."""
    assert Flag.ATTACKS_DISAGREE in UNRELIABLE
    assert Flag.DEFENCE_SUSPECTED not in UNRELIABLE
