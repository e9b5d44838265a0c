"""Flags that a gradient raises by itself."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import restore
from labelleak.attacks.diagnosis import diagnose
from labelleak.observation import HeadGradient
from labelleak.restoration import UNRELIABLE, Flag
from synthetic import losses, rng, untrained

FORMATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def noise(share):
    def add(gradients):
        size = float(gradients["fc.weight"].square().mean().sqrt())
        return defenses.gaussian_noise(gradients, share * size, generator=rng(1))

    return add


def noisy(gradient, share, seed):
    """A gradient with noise of that share of a typical entry."""
    deviation = share * float(gradient.weight.square().mean().sqrt())
    return HeadGradient(
        *(
            tensor + deviation * torch.randn(tensor.shape, generator=rng(seed), dtype=tensor.dtype)
            for tensor in (gradient.weight, gradient.bias)
        )
    )


DEFENSES = {
    "noise": noise(0.02),
    "sparsify 5 %": partial(defenses.sparsify, percent=5.0),
    "sparsify 80 %": partial(defenses.sparsify, percent=80.0),
    "sign": defenses.sign,
    "2 bits": partial(defenses.quantize, bits=2, generator=rng(2)),
    "8 bits": partial(defenses.quantize, bits=8, generator=rng(2)),
    "8 bits, nearest": partial(defenses.quantize, bits=8),
    "16 bits": partial(defenses.quantize, bits=16, generator=rng(2)),
}


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_defense_is_suspected(defense, dtype):
    for seed in range(3):
        seen = untrained(20, 80, 16, seed, dtype=torch.float32).observe(dtype=dtype)
        assert diagnose(defenses.defend(seen, DEFENSES[defense])).is_treated


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 20.0])
@pytest.mark.parametrize(("classes", "size"), [(2, 1), (2, 40), (10, 1), (10, 64), (200, 8)])
def test_nothing_is_suspected_of_a_gradient_as_it_is(classes, size, scale, dtype):
    """Features that are always zero, one sample, few classes, sure predictions, coarse formats."""
    for seed in range(3):
        batch = untrained(classes, 64, size, seed, scale=scale, spread=1.0)
        assert not diagnose(batch.observe(dtype=dtype)).is_treated


@pytest.mark.parametrize("defense", [None, "sparsify 5 %", "sparsify 80 %", "8 bits", "16 bits"])
def test_a_part_of_a_large_gradient_shows_what_the_whole_does(defense):
    """More entries than are looked at, a third of the features inactive."""
    batch = untrained(300, 600, 16, dtype=torch.float32)
    batch.embeddings[:, ::3] = 0.0
    seen = batch.observe(dtype=torch.float32)
    seen = seen if defense is None else defenses.defend(seen, DEFENSES[defense])
    zeros = seen.gradient.weight == 0
    assert zeros.all(dim=0).sum() >= 200
    # Columns in another order in memory.
    turned = HeadGradient(seen.gradient.weight.T.contiguous().T, seen.gradient.bias)
    for one in (seen, replace(seen, gradient=turned)):
        assert diagnose(one).is_treated == (defense is not None)


def test_zeros_in_a_few_rows_of_a_large_gradient_are_seen():
    batch = untrained(300, 600, 16, dtype=torch.float32)
    gradient = batch.gradient(torch.float32)
    for rows, treated in ((1, False), (12, True)):
        weight = gradient.weight.clone()
        # Another row takes what they had, so that the sums stay zero.
        weight[0, ::2] += weight[5 : 5 + rows, ::2].sum(dim=0)
        weight[5 : 5 + rows, ::2] = 0.0
        found = diagnose(batch.observe(HeadGradient(weight, gradient.bias), dtype=torch.float32))
        assert found.sums_are_zero
        assert found.is_treated == treated


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
    found = diagnose(seen)
    assert not found.is_treated or not found.sums_are_zero


def test_weight_decay_is_no_defense():
    batch = untrained(20, 64, 8)
    gradient = batch.gradient()
    decayed = HeadGradient(gradient.weight + 0.01 * batch.weight, gradient.bias + 0.01 * batch.bias)
    seen = batch.observe(decayed)
    assert not diagnose(seen).sums_are_zero
    assert not diagnose(seen).is_treated
    found = restore(seen, "idlg")
    assert Flag.SUMS_NOT_ZERO in found.flags
    assert Flag.DEFENSE_SUSPECTED not in found.flags


def test_what_makes_a_verdict_unreliable():
    """A defense alone does not: clipping is undone, and the audit still counts what came out."""
    assert Flag.ATTACKS_DISAGREE in UNRELIABLE
    assert Flag.DEFENSE_SUSPECTED not in UNRELIABLE


@pytest.mark.parametrize("loss", losses(20), ids=str)
def test_classes_that_are_certain_are_there(loss):
    """Under every loss; of a network that is not sure of anything, nearly all of them are."""
    batch = untrained(20, 40, 10, scale=0.1)
    batch.labels = torch.arange(0, 20, 2)
    certain = diagnose(batch.observe_under(loss)).certain
    assert not (certain & ~batch.present).any()
    # Classes of little weight may hide behind what the predictions of the others leave.
    assert int(certain.sum()) >= (10 if loss["weight"] is None else 6)
    for seed in range(5):
        sure = untrained(20, 40, 7, seed, scale=20.0, spread=1.0)
        assert not (diagnose(sure.observe_under(loss)).certain & ~sure.present).any()


def test_no_class_is_certain_without_a_bias_or_a_scale():
    batch = untrained(20, 40, 10)
    assert diagnose(batch.observe()).certain.any()
    assert not diagnose(batch.observe(bias=False)).certain.any()
    unscaled = batch.observe(batch.autograd(reduction="sum"), reduction="sum", batch_size=None)
    assert not diagnose(unscaled).certain.any()


def test_noise_makes_no_class_certain():
    batch = untrained(20, 80, 16)
    for seed in range(5):
        gradient = noisy(batch.gradient(), 0.2, seed)
        assert not (diagnose(batch.observe(gradient)).certain & ~batch.present).any()


def test_what_is_not_known_is_flagged():
    batch = untrained(20, 40, 10)
    assert diagnose(batch.observe()).flags == frozenset()
    assert diagnose(batch.observe(bias=False)).flags == {Flag.NO_BIAS}
    assert diagnose(batch.observe(batch_size=None)).flags == {Flag.UNKNOWN_BATCH_SIZE}
    assert diagnose(batch.observe(batch_size=5, local_steps=2)).flags == {Flag.SEVERAL_STEPS}
