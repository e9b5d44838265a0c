"""Only the gradient of the bias is sent, or only that of the weight: what needs no more runs."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from update_files import refused, save

from labelleak import Flag, list_attacks, observe, observe_update, restore
from labelleak.attacks.registry import Need
from labelleak.errors import InvalidObservation, LabelLeakError, MissingKnowledge
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

CLASSES, SIZE = 10, 16


@pytest.fixture
def client():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    labels = torch.randint(CLASSES, (SIZE,))
    F.cross_entropy(model(torch.randn(SIZE, 32)), labels).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return model, gradients, torch.bincount(labels, minlength=CLASSES)


def forms(client, tmp_path):
    """What was observed of the bias alone, in every way that it may be sent."""
    model, gradients, _ = client
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bias = gradients["2.bias"]
    moved = {"2.bias": before["2.bias"] - 0.1 * bias}
    step = LocalTraining(learning_rate=0.1, batch_size=SIZE, steps=1)
    path = save(before, tmp_path / "before.safetensors")
    yield observe(model, {"2.bias": bias}, batch_size=SIZE)
    yield observe(before, {"net.2.bias": bias}, batch_size=SIZE)
    yield observe(model, {**gradients, "2.weight": None}, batch_size=SIZE)
    yield observe(model, {**gradients, "2.weight": 0 * gradients["2.weight"]}, batch_size=SIZE)
    yield observe_update(model, before, moved, training=step)
    yield observe_update(model, before, before | moved, training=step)
    for content, kind in (({"2.bias": bias}, "gradients"), (moved, "weights")):
        update = save(content, tmp_path / f"{kind}.safetensors")
        yield read_observation(path, update, kind=kind, training=step)
    update = save({"2.bias": -0.1 * bias}, tmp_path / "change.safetensors")
    yield read_observation(path, update, kind="difference", training=step)


def test_attacks_that_need_no_more_run(client, tmp_path):
    counts = client[2]
    for observation in forms(client, tmp_path):
        assert not observation.gradient.has_weight
        assert observation.gradient.weight.shape == (CLASSES, 64)
        assert torch.allclose(observation.gradient.bias.float(), client[1]["2.bias"], atol=1e-6)
        for name in ("mbi", "llbg", "ebi", "auto"):
            found = restore(observation, name)
            assert int(found.counts.sum()) == SIZE
            assert Flag.NO_WEIGHT in found.flags
            assert found.unreliable
            if name != "ebi":
                assert torch.equal(found.counts, counts)


def test_attacks_that_need_more_say_so(client):
    observation = observe(client[0], {"2.bias": client[1]["2.bias"]}, batch_size=SIZE)
    for name, attack in list_attacks().items():
        if Need.WEIGHT in attack.needs:
            with pytest.raises(MissingKnowledge, match="the gradient of the final layer's weight"):
                restore(observation, name)
    unknown = observe(client[0], {"2.bias": client[1]["2.bias"]})
    with pytest.raises(MissingKnowledge, match="needs the batch size"):
        restore(unknown)


def test_a_weight_of_another_shape_was_sent(client, tmp_path):
    model, gradients, _ = client
    sent = {**gradients, "2.weight": torch.ones(CLASSES, 63)}
    with pytest.raises(InvalidObservation, match="10x63 and the head 10x64"):
        observe(model, sent)
    paths = [
        save(model.state_dict(), tmp_path / "before.safetensors"),
        save({f"net.{name}": value for name, value in sent.items()}, tmp_path / "u.safetensors"),
    ]
    refused(*paths, r"has no tensor '2\.weight', the head of before")


@pytest.mark.parametrize("value", [0.0, 1e-300])
@pytest.mark.parametrize("name", ["auto", *list_attacks()])
def test_a_bias_that_is_frozen(client, name, value):
    """Zeros, or what is left of them, are no gradient of any batch."""
    model, gradients, _ = client
    sent = {**gradients, "2.bias": torch.full((CLASSES,), value, dtype=torch.float64)}
    observation = observe(model, sent, batch_size=SIZE)
    assert not observation.has_bias
    try:
        found = restore(observation, name, time_limit=0.2)
    except MissingKnowledge:
        return
    assert Flag.NO_BIAS in found.flags


@pytest.mark.parametrize("name", ["auto", *list_attacks()])
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-37, 1e37, 1e150, 1e300])
@pytest.mark.parametrize("part", ["gradient", "weight alone", "bias alone", "head", "both"])
def test_entries_of_any_size_are_counted_or_refused(part, scale, name):
    """In one line, and in double precision, whose squares overflow."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (6, 12), "bias": (6,)}
    head, gradient = (
        {
            key: torch.randn(shape, generator=generator, dtype=torch.float64)
            for key, shape in shapes.items()
        }
        for _ in range(2)
    )
    if part in ("head", "both"):
        head = {key: scale * value for key, value in head.items()}
    if part in ("gradient", "both"):
        gradient = {key: scale * value for key, value in gradient.items()}
    if part.endswith("alone"):
        gradient[part.split()[0]] *= scale
    with suppress(LabelLeakError):
        found = restore(observe(head, gradient, batch_size=4), name, time_limit=0.2)
        assert found.counts is None or int(found.counts.sum()) == 4
