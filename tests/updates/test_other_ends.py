"""Last layers that cannot be read are named, and never a hidden layer in their place."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_heads import CLEAR, found_or_listed, orders, shapes_of
from torch import nn

from labelleak import observe
from labelleak.errors import AmbiguousHead
from labelleak.updates import find_head
from labelleak.updates.heads import module_shapes, named_head


def with_head_of(title, *, outputs, kernel=()):
    """A well-known network of which the head has another number of outputs, or is a convolution."""
    shapes = shapes_of(title, 10)
    for layer in (CLEAR[title], CLEAR[title].replace("modules_to_save.default", "original_module")):
        features = shapes[f"{layer}.weight"][1]
        shapes[f"{layer}.weight"] = (outputs, features, *kernel)
        if f"{layer}.bias" in shapes:
            shapes[f"{layer}.bias"] = (outputs,)
    return shapes


@pytest.mark.parametrize("title", CLEAR)
def test_one_logit_in_place_of_the_classes(title):
    if title == "transformers LlamaForCausalLM":
        pytest.skip("its head is named by the vocabulary")
    head = CLEAR[title]
    for shapes in orders(with_head_of(title, outputs=1)):
        with pytest.raises(AmbiguousHead, match=f"{head} is one logit"):
            find_head(shapes)


@pytest.mark.parametrize("kernel", [(1, 1), (1,), (1, 1, 1)])
@pytest.mark.parametrize("title", CLEAR)
def test_a_convolution_in_place_of_the_last_layer(title, kernel):
    if title == "transformers LlamaForCausalLM":
        pytest.skip("its head is named by the vocabulary")
    for shapes in orders(with_head_of(title, outputs=10, kernel=kernel)):
        with pytest.raises(AmbiguousHead, match=f"{CLEAR[title]} is a 1"):
            find_head(shapes)


@pytest.mark.parametrize("names", ["{}", "net.{}", "fc{}", "layers.{}.linear"])
@pytest.mark.parametrize(
    "widths", [(32, 64, 1), (32, 64, 64, 1), (8, 64, 32, 1), (784, 2, 1), (64, 64, 1)]
)
def test_one_logit_behind_hidden_layers(names, widths):
    shapes = {}
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes[f"{names.format(2 * number)}.weight"] = (outputs, inputs)
        shapes[f"{names.format(2 * number)}.bias"] = (outputs,)
    last = names.format(2 * (len(widths) - 2))
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match=rf"cannot be read yet: {last} is one logit"):
            find_head(ordered)
    for head in (last, f"{last}.weight"):
        with pytest.raises(AmbiguousHead, match=f"head '{head}' cannot be read yet: .* one logit"):
            named_head(shapes, head)
    hidden = names.format(0)
    assert named_head(shapes, hidden) == hidden


@pytest.mark.parametrize(
    "shapes",
    [
        # The trunk and the critic, whatever the critic is called.
        {"fc.weight": (64, 3136), "value.weight": (1, 64)},
        # Wide and deep: what the deep part puts out is put beside something else.
        {"deep.0.weight": (64, 32), "deep.2.weight": (32, 64), "fc_out.weight": (1, 40)},
        {"encoder.weight": (64, 32), "head.weight": (1, 100)},
        {"conv.weight": (64, 3, 3, 3), "fc.weight": (1, 64)},
        {"weight": (1, 8), "bias": (1,)},
    ],
)
def test_one_logit_of_other_names(shapes):
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match="is one logit"):
            find_head(ordered)


@pytest.mark.parametrize(
    ("shapes", "head"),
    [
        (
            {"trunk.weight": (512, 3136), "actor.weight": (6, 512), "critic.weight": (1, 512)},
            "actor",
        ),
        (
            {
                "embed.weight": (256, 99),
                "attention.weight": (1, 256),
                "classifier.weight": (2, 256),
            },
            "classifier",
        ),
        ({"conv.weight": (8, 3, 3, 3), "fc.weight": (10, 8), "quality.weight": (1, 8)}, "fc"),
        (
            {"conv.weight": (64, 3, 3, 3), "last.weight": (64, 64, 1, 1), "fc.weight": (64, 64)},
            "fc",
        ),
    ],
)
def test_one_output_beside_a_head_hides_none(shapes, head):
    for ordered in orders(shapes):
        assert find_head(ordered) == head


class Squeeze(nn.Module):
    """Squeeze and excitation by linear layers."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels)


@pytest.mark.parametrize("classes", [2, 10, 48])
@pytest.mark.parametrize("last", ["classifier", "head.conv", "out_conv", "predict"])
def test_a_convolution_behind_squeeze_and_excitation(last, classes):
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 64, 3))
    model.add_module("se", Squeeze(64))
    *parents, name = last.split(".")
    parent = model
    for part in parents:
        parent.add_module(part, nn.Sequential())
        parent = parent.get_submodule(part)
    parent.add_module(name, nn.Conv2d(64, classes, 1))
    for shapes in orders(module_shapes(model)):
        assert last.split(".")[0] not in found_or_listed(shapes)
        with pytest.raises(AmbiguousHead, match=f"{last} is a 1x1 convolution"):
            find_head(shapes)


def test_a_numbered_convolution_is_the_last_by_its_number():
    shapes = {"0.weight": (64, 3, 3, 3), "2.fc1.weight": (16, 64), "2.fc2.weight": (64, 16)}
    shapes |= {"10.weight": (10, 64, 1, 1), "10.bias": (10,)}
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match="10 is a 1x1 convolution"):
            find_head(ordered)


def language_model(layers=2, width=32, words=100):
    blocks = {
        f"transformer.h.{number}.{name}.weight": shape
        for number in range(layers)
        for name, shape in {
            "attn.q_proj": (width, width),
            "attn.v_proj": (width, width),
            "mlp.up_proj": (4 * width, width),
            "mlp.down_proj": (width, 4 * width),
        }.items()
    }
    return {"transformer.wte.weight": (words, width), **blocks}


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("table", ["transformer.wte", "model.embed_tokens", "shared"])
def test_a_tied_language_model_without_its_head(layers, table):
    shapes = language_model(layers)
    shapes[f"{table}.weight"] = shapes.pop("transformer.wte.weight")
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match=f"tied to '{table}', as language models have"):
            find_head(ordered)


@pytest.mark.parametrize("bias", ["lm_head.bias", "cls.predictions.bias", "final_logits_bias"])
def test_a_bias_without_its_weight_is_that_of_a_tied_head(bias):
    shapes = language_model() | {"lm_head.dense.weight": (32, 32), "lm_head.dense.bias": (32,)}
    shapes[bias] = (1, 100) if bias == "final_logits_bias" else (100,)
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match=r"tied to the table 'transformer\.wte'"):
            find_head(ordered)


def test_an_untied_head_is_read():
    for ordered in orders(language_model() | {"lm_head.weight": (100, 32)}):
        assert find_head(ordered) == "lm_head"


class Model(nn.Module):
    """Words in, words out."""

    def __init__(self, *, tied):
        super().__init__()
        self.wte = nn.Embedding(20, 12)
        self.lm_head = nn.Linear(12, 20, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        return self.lm_head(self.wte(tokens))


@pytest.mark.parametrize("form", ["model", "state dict", "copies"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_table(tied, form):
    torch.manual_seed(0)
    model = Model(tied=tied)
    tokens = torch.tensor([1, 5, 5, 7])
    nn.CrossEntropyLoss()(model(tokens), torch.tensor([3, 3, 4, 9])).backward()
    named = model.named_parameters(remove_duplicate=form == "model")
    gradients = {name: value.grad for name, value in named}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = {"model": model, "state dict": model.state_dict(), "copies": state}[form]
    if tied:
        with pytest.raises(ValueError, match="'lm_head' is tied to the table 'wte'"):
            observe(seen, gradients, batch_size=4)
    else:
        assert observe(seen, gradients, batch_size=4).head.name == "lm_head"


def test_copies_that_are_trained_apart_are_not_tied():
    """The head begins as a copy of the table."""
    model = Model(tied=False)
    model.lm_head.weight.data.copy_(model.wte.weight)
    nn.CrossEntropyLoss()(model(torch.tensor([1, 5])), torch.tensor([3, 9])).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert observe(model, gradients, batch_size=2).head.name == "lm_head"


@given(
    st.lists(st.integers(2, 64), min_size=2, max_size=5),
    st.sampled_from(["fc{}", "{}", "net.{}.linear", "layer{}.proj"]),
    st.booleans(),
)
def test_no_chain_that_ends_in_one_logit_has_a_head(widths, names, bias):
    sizes = [*widths, 1]
    shapes = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        shapes[f"{names.format(number)}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{names.format(number)}.bias"] = (outputs,)
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead):
            find_head(ordered)
