"""What a defense makes of an observation."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from head_gradients import every_defense, head_gradients, observation, rng
from labelleak import observe
from labelleak.defenses import (
    clip_norm,
    defend,
    gaussian_noise,
    quantize,
    sign,
    sparsify,
)
from labelleak.errors import InvalidObservation
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import untrained


@every_defense
def test_the_head_alone_is_defended_where_nothing_else_is_known(defense):
    before = observation(batch_size=16, label_smoothing=0.1)
    after = defend(before, defense)
    expected = defense(head_gradients())
    assert torch.equal(after.gradient.weight, expected["fc.weight"])
    assert torch.equal(after.gradient.bias, expected["fc.bias"])
    assert after.gradients is None
    assert (after.head, after.batch_size, after.loss) == (before.head, 16, before.loss)


@every_defense
def test_the_whole_update_is_defended_where_it_is_known(defense):
    gradients = {"conv.weight": torch.randn(4, 3, generator=rng(9)), **head_gradients()}
    before = observation(gradients=gradients)
    after, expected = defend(before, defense), defense(gradients)
    assert {name: tensor.tolist() for name, tensor in after.gradients.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert torch.equal(after.gradient.weight, expected["fc.weight"])
    assert torch.equal(after.gradient.bias, expected["fc.bias"])
    assert before.gradients is gradients


def test_the_rest_of_the_update_counts_towards_the_norm():
    large = {"conv.weight": torch.full((1,), 99.0)}
    alone = defend(observation(), partial(clip_norm, max_norm=1.0))
    beside = defend(
        observation(gradients={**large, **head_gradients()}), partial(clip_norm, max_norm=1.0)
    )
    ratio = beside.gradient.weight.norm() / alone.gradient.weight.norm()
    assert ratio == pytest.approx(1 / 99, rel=0.01)


@pytest.mark.parametrize("name", [None, "fc"])
def test_a_head_without_bias_or_name_is_defended(name):
    gradient = head_gradients()["fc.weight"]
    before = Observation(Head(torch.zeros(5, 7), name=name), HeadGradient(gradient))
    after = defend(before, sign)
    assert torch.equal(after.gradient.weight, gradient.sign())
    assert after.gradient.bias is None


@pytest.mark.parametrize("name", [None, ""])
def test_a_model_that_is_its_head_is_defended(name):
    gradients = {"weight": head_gradients()["fc.weight"]}
    before = Observation(
        Head(torch.zeros(5, 7), name=name), HeadGradient(gradients["weight"]), gradients=gradients
    )
    after = defend(before, sign)
    assert torch.equal(after.gradient.weight, gradients["weight"].sign())
    assert after.gradients["weight"] is after.gradient.weight


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"conv.weight": torch.ones(3)}, r"lack fc\.weight and fc\.bias: give the head its name"),
        ({"fc.weight": torch.ones(5, 7)}, r"lack fc\.bias: "),
    ],
)
def test_a_head_that_is_not_in_the_update_is_refused(gradients, message):
    with pytest.raises(InvalidObservation, match=message):
        defend(observation(gradients=gradients), sign)


def test_a_defense_that_leaves_nothing_of_the_head_is_said():
    gradients = {"conv.weight": torch.full((1000,), 99.0), **head_gradients()}
    with pytest.raises(InvalidObservation, match="zero everywhere"):
        defend(observation(gradients=gradients), partial(sparsify, percent=50, scope="global"))


def test_a_defended_update_comes_without_the_client_s_undefended_model():
    batch = untrained(6, 12, 4)
    seen = batch.observe(after=batch.after(0.1))
    assert defend(seen, sign).after is None


@pytest.mark.parametrize("whole", [False, True])
def test_of_one_logit_the_row_that_is_sent_is_defended(whole):
    model = torch.nn.Linear(40, 1)
    inputs = torch.randn(12, 40, generator=rng())
    targets = (torch.arange(12) < 5).float()[:, None]
    torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), targets).backward()
    sent = {name: value.grad for name, value in model.named_parameters()}
    seen = observe(model, sent, batch_size=12, loss="bce")
    seen = seen if whole else replace(seen, gradients=None)
    for defense in (
        partial(sparsify, percent=90.0),
        partial(quantize, bits=3),
        partial(gaussian_noise, std=0.1, generator=rng(1)),
    ):
        expected = defense({"weight": sent["weight"], "bias": sent["bias"]})
        if "generator" in defense.keywords:
            defense.keywords["generator"].manual_seed(1)
        found = defend(seen, defense)
        assert found.is_one_logit
        for kind in ("weight", "bias"):
            two = getattr(found.gradient, kind)
            assert torch.equal(two, torch.cat([-expected[kind], expected[kind]]))
