import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_networks import CLEAR, NETWORKS, NO_HEAD, SEVERAL, orders, shapes_of
from torch import nn

from labelleak.errors import AmbiguousHead
from labelleak.lab import networks
from labelleak.updates import find_head
from labelleak.updates.heads import by_bare_name, named_head, strip_wrappers


def candidates(error):
    found = re.search(
        r"candidates are: (.*?)( and more)?; choose the one .* with head=NAME",
        str(error),
    )
    return re.findall(r"([^ ,]+|\(top level\)) \(\d+ classes\)", found[1])


def found_or_listed(shapes):
    try:
        return [find_head(shapes)]
    except AmbiguousHead as error:
        return candidates(error)


def test_the_table_is_read():
    assert len(NETWORKS) > 35
    assert len(CLEAR) > 30
    assert shapes_of("timm vit_base_patch16_224", 7)["blocks.11.mlp.fc2.weight"] == (768, 3072)
    assert shapes_of("torchvision resnet50", 7)["fc.weight"] == (7, 2048)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("title", CLEAR)
def test_well_known_networks(title, classes):
    for shapes in orders(shapes_of(title, classes)):
        assert find_head(shapes) == CLEAR[title]


@pytest.mark.parametrize("title", CLEAR)
def test_as_many_classes_as_a_hidden_layer_is_wide(title):
    shapes = shapes_of(title, 1000)
    for width in {size for shape in shapes.values() for size in shape if size > 2}:
        for ordered in orders(shapes_of(title, width)):
            assert CLEAR[title] in found_or_listed(ordered)


@pytest.mark.parametrize(
    ("title", "classes"),
    [
        ("torchvision vgg16", 4096),
        ("torchvision vit_b_16", 768),
        ("torchvision inception_v3", 768),
        ("timm vit_base_patch16_224", 768),
        ("timm convnext_tiny", 384),
        ("timm swin_tiny_patch4_window7_224", 768),
        ("timm mixer_b16_224", 196),
        ("timm coatnet_0_224", 768),
        ("transformers BertForSequenceClassification", 768),
        ("transformers RobertaForSequenceClassification", 768),
        ("transformers DistilBertForSequenceClassification", 768),
        ("transformers GPT2ForSequenceClassification", 768),
        ("transformers LlamaForSequenceClassification", 64),
        ("transformers ViTForImageClassification", 768),
    ],
)
def test_as_many_classes_as_a_hidden_layer_is_wide_and_the_name_tells(title, classes):
    for shapes in orders(shapes_of(title, classes)):
        assert find_head(shapes) == CLEAR[title]


@pytest.mark.parametrize("classes", [10, 256, 1000])
@pytest.mark.parametrize("title", SEVERAL)
def test_several_heads(title, classes):
    for shapes in orders(shapes_of(title, classes)):
        with pytest.raises(AmbiguousHead) as error:
            find_head(shapes)
        assert set(SEVERAL[title]) <= set(candidates(error.value))


@pytest.mark.parametrize("title", NO_HEAD)
def test_a_convolution_as_the_head(title):
    for shapes in orders(shapes_of(title, 10)):
        with pytest.raises(AmbiguousHead, match=r"classifier(\.1)? is a 1x1 convolution"):
            find_head(shapes)


def module_shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [*networks.names(), "fcn-1", "fcn-9"])
def test_networks_of_the_package(name):
    head = "classifier.6" if name.startswith("vgg") else "fc"
    # 100 and 128 are no widths of theirs; 84, 120, 300 and 512 are.
    for classes in (2, 10, 84, 100, 120, 128, 300, 512):
        with torch.device("meta"):
            model = networks.build(name, classes=classes, image_shape=(3, 32, 32))
        for shapes in orders(module_shapes(model)):
            assert find_head(shapes) == head


@pytest.mark.parametrize(
    "widths",
    [
        (784, 10),
        (784, 300, 10),
        (784, 100, 50, 10),
        (784, 10, 10),
        (784, 10, 10, 10),
        (10, 10),
        (784, 100, 100, 100),
        (64, 10, 64, 10),
    ],
)
@pytest.mark.parametrize("names", ["{}", "net.{}", "fc{}", "layers.{}.linear"])
def test_fully_connected_networks(names, widths):
    # As in a Sequential, with an activation between the layers.
    layers = [names.format(2 * number) for number in range(len(widths) - 1)]
    shapes = {}
    for layer, (inputs, outputs) in zip(layers, pairwise(widths), strict=True):
        shapes[f"{layer}.weight"] = (outputs, inputs)
        shapes[f"{layer}.bias"] = (outputs,)
    found = found_or_listed(shapes)
    assert layers[-1] in found
    assert len(found) == 1 or widths[-1] in widths[1:-1]


def test_a_single_layer():
    assert find_head(module_shapes(nn.Linear(784, 10))) == ""
    assert named_head({"weight": (10, 784)}, "") == ""
    assert named_head({"weight": (10, 784)}, "weight") == ""


@pytest.mark.parametrize(
    ("shapes", "head"),
    [
        ({"backbone.conv.weight": (64, 3, 3, 3), "my_head.weight": (10, 512)}, "my_head"),
        ({"backbone.fc.weight": (512, 2048), "top.weight": (10, 512)}, "top"),
        ({"trunk.0.weight": (64, 30), "trunk.2.weight": (64, 64), "top.weight": (5, 64)}, "top"),
        ({"lin1.weight": (128, 784), "lin2.weight": (10, 128)}, "lin2"),
        ({"embed.weight": (1000, 64), "rnn.weight_ih_l0": (256, 64), "fc.weight": (2, 64)}, "fc"),
        ({"embedding_net.0.weight": (64, 784), "embedding_net.2.weight": (10, 64), "head.weight":
          (7, 10)}, "head"),
        ({"fc1.weight": (120, 400), "fc2.weight": (84, 120), "fc3.weight": (10, 84)}, "fc3"),
        ({"a.weight": (10, 512), "a.bias": (10,), "norm.weight": (512,)}, "a"),
    ],
)  # fmt: skip
def test_other_names(shapes, head):
    for ordered in orders(shapes):
        assert find_head(ordered) == head


@pytest.mark.parametrize(
    "shapes",
    [
        {"trunk.weight": (64, 784), "left.weight": (10, 64), "right.weight": (10, 64)},
        {"trunk.weight": (64, 784), "heads.0.weight": (10, 64), "heads.1.weight": (10, 64)},
        # The trunk ends in a layer that is usually a head, and two heads of other names follow.
        {"fc.weight": (512, 3136), "actor.weight": (6, 512), "critic.weight": (2, 512)},
        # As many classes as "side" takes in: only "side" looks like an end, and is none.
        {"fc.weight": (96, 512), "block.side.weight": (32, 96)},
        {"left.weight": (10, 10), "right.weight": (10, 10)},
    ],
)
def test_ambiguous(shapes):
    ends = {name.removesuffix(".weight") for name in list(shapes)[-2:]}
    for ordered in orders(shapes):
        with pytest.raises(AmbiguousHead, match="--head NAME") as error:
            find_head(ordered)
        assert ends <= set(candidates(error.value))
        assert "\n" not in str(error.value)


def test_many_candidates_are_not_all_listed():
    shapes = {f"task{letter}.weight": (10, 64) for letter in "abcdefghijklmnopqrstuvwxyz"}
    with pytest.raises(AmbiguousHead, match="and more; choose") as error:
        find_head(shapes)
    assert len(candidates(error.value)) == 12


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,)},
        {"regression.weight": (1, 64), "regression.bias": (1,)},
        {"word_embeddings.weight": (30522, 768)},
        {"weights": (10, 20), "scalar": ()},
    ],
)
def test_no_linear_layer(shapes):
    with pytest.raises(AmbiguousHead, match=f"no final linear layer .* among {len(shapes)} tensor"):
        find_head(shapes)


@pytest.mark.parametrize(
    "parametrization",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(
            nn.utils.weight_norm,
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
        ),
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.parametrize("hidden", [50, 10])
def test_a_head_of_which_the_weight_is_made_from_others(parametrization, hidden):
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(20, hidden))
    model.add_module("fc2", parametrization(nn.Linear(hidden, 10)))
    with pytest.raises(AmbiguousHead, match=r"fc2 is made from other tensors"):
        find_head(module_shapes(model))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_module.", "_orig_mod.module."])
def test_wrappers(prefix):
    shapes = shapes_of("torchvision resnet50", 10)
    wrapped = {prefix + name: shape for name, shape in shapes.items()}
    assert find_head(wrapped) == prefix + "fc"
    assert strip_wrappers(list(wrapped)) == {prefix + name: name for name in shapes}


def test_wrappers_of_a_part_are_names():
    names = ["module.fc.weight", "other.weight"]
    assert strip_wrappers(names) == {name: name for name in names}
    assert strip_wrappers([]) == {}


def test_values_by_bare_names():
    assert by_bare_name({"module.a": 1, "module._module.b": None}) == {"a": 1, "_module.b": None}
    assert by_bare_name({0: 1, "module.a": 2}) == {"0": 1, "module.a": 2}
    assert by_bare_name({}) == {}


def test_wrapped_models():
    model = networks.build("fcn-3", classes=10, image_shape=(1, 28, 28))
    assert find_head(module_shapes(nn.DataParallel(model))) == "module.fc"
    assert find_head(module_shapes(torch.compile(model, backend="eager"))) == "_orig_mod.fc"


class TestNamedHead:
    shapes = {"conv.weight": (8, 3, 3, 3), "a.weight": (10, 64), "b.weight": (9, 64)}  # noqa: RUF012

    @pytest.mark.parametrize("head", ["b", "b.weight", "b.bias"])
    def test_of_the_layer_or_a_parameter(self, head):
        assert named_head(self.shapes, head) == "b"

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
    @pytest.mark.parametrize("given", ["b", "module.b", "_module.b.weight", "_orig_mod.module.b"])
    def test_the_prefix_of_a_wrapper_on_either_side(self, prefix, given):
        shapes = {prefix + name: shape for name, shape in self.shapes.items()}
        assert named_head(shapes, given) == prefix + "b"

    def test_a_prefix_that_is_a_name(self):
        shapes = {"module.b.weight": (3, 4), "b.weight": (5, 4), "module.c.weight": (6, 4)}
        assert named_head(shapes, "b") == "b"
        assert named_head(shapes, "module.b") == "module.b"
        assert named_head(shapes, "c") == "module.c"

    def test_none_is_to_find_it(self):
        assert named_head({"fc.weight": (10, 64)}, None) == "fc"
        with pytest.raises(AmbiguousHead, match=r"are: a \(10 classes\), b \(9 classes\);"):
            named_head(self.shapes, None)

    def test_unknown(self):
        with pytest.raises(
            AmbiguousHead, match=r"'c' is not among the tensors; .* with one: a, b$"
        ):
            named_head(self.shapes, "c")

    def test_no_matrix(self):
        with pytest.raises(AmbiguousHead, match=r"'conv' has no weight matrix; .* with one: a, b$"):
            named_head(self.shapes, "conv")


@given(
    st.dictionaries(
        st.text(max_size=20).map(lambda name: name + ".weight") | st.text(max_size=20),
        st.lists(st.integers(0, 12), max_size=4).map(tuple),
        max_size=8,
    )
)
def test_anything_has_a_head_or_none(shapes):
    try:
        head = find_head(shapes)
    except AmbiguousHead:
        return
    shape = shapes[f"{head}.weight" if head else "weight"]
    assert len(shape) == 2
    assert shape[0] >= 2
