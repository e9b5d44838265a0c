"""Updates of transformers, peft and timm by their names and shapes, as training makes them."""

import pytest
import torch
from known_networks import CLEAR, shapes_of

from labelleak.updates import observe
from labelleak.updates.heads import layer_of, without_peft

LIBRARIES = ("transformers", "peft", "timm")
TITLES = [title for title in CLEAR if title.startswith(LIBRARIES)]
OF_PEFT = [title for title in TITLES if title.startswith("peft")]


def state_of(title, classes):
    """A state dict in which all but the heads' tensors take no memory."""
    return {
        name: torch.randn(shape) if classes in shape else torch.rand(()).expand(shape)
        for name, shape in shapes_of(title, classes).items()
    }


def gradient_of_head(state, head):
    """Gradients of the head alone, as a run that trains nothing else sends them."""
    return {
        name: torch.randn_like(value) - 5.0
        for name, value in state.items()
        if layer_of(name) == head
    }


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_named_families_are_among_them():
    wanted = ("Bert", "GPT2", "Llama", "timm vit", "timm convnext", "peft LoRA of Bert")
    for family in wanted:
        assert any(family in title for title in TITLES), family


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("title", TITLES)
def test_the_gradient_that_is_read_is_that_of_the_head(title, classes):
    state, head = state_of(title, classes), CLEAR[title]
    sent = gradient_of_head(state, head)
    seen = observe(state, sent, batch_size=4)
    assert seen.head.name == head
    assert torch.equal(seen.gradient.weight, sent[f"{head}.weight"])
    assert seen.has_bias is (f"{head}.bias" in state)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("title", OF_PEFT)
def test_the_trained_copy_of_peft_is_read_beside_the_one_it_keeps(title, classes):
    state, head = state_of(title, classes), CLEAR[title]
    kept = head.replace("modules_to_save.default", "original_module")
    assert f"{kept}.weight" in state
    assert "modules_to_save.default" in head
    sent = gradient_of_head(state, head)
    # Some optimizers and wrappers send zeros for what is frozen.
    zeros = {f"{kept}.weight": torch.zeros_like(state[f"{kept}.weight"])}
    assert observe(state, {**zeros, **sent}, batch_size=4).head.name == head


@pytest.mark.parametrize("title", OF_PEFT)
def test_an_adapter_beside_its_base_model(title):
    state, head = state_of(title, 2), CLEAR[title]
    base = {
        without_peft(name).removeprefix("base_model.model."): value
        for name, value in state.items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    # A file of the adapter leaves the level of the copies out.
    sent = {without_peft(name): value for name, value in gradient_of_head(state, head).items()}
    seen = observe(base, sent, batch_size=4)
    assert seen.head.name == without_peft(head).removeprefix("base_model.model.")
    assert torch.equal(seen.gradient.weight, sent[f"{without_peft(head)}.weight"])
