import pytest
import torch
from torch import nn

from labelleak.lab import networks

HEAD_WIDTHS = {
    **dict.fromkeys(["fcn-2", "fcn-3", "fcn-4", "fcn-5", "fcn-6"], 300),
    "lenet5": 84,
    **dict.fromkeys(["vgg11", "vgg13", "vgg16", "vgg19"], 4096),
    **dict.fromkeys(["resnet18", "resnet34"], 512),
    **dict.fromkeys(["resnet50", "resnet101", "resnet152"], 2048),
}


def build(name="fcn-2", **options):
    return networks.build(name, **{"classes": 10, "image_shape": (3, 32, 32), **options})


def test_names_are_the_papers():
    assert networks.names() == tuple(HEAD_WIDTHS)


@pytest.mark.parametrize(("name", "width"), HEAD_WIDTHS.items())
def test_every_name_builds(name, width):
    with torch.device("meta"):
        network = build(name, classes=7)
    assert network.training
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 7)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    assert (head.in_features, head.out_features) == (width, 7)
    # The head comes last among the parameters, weight and then bias, as attackers expect it.
    assert [p.shape for p in network.parameters()][-2:] == [(7, width), (7,)]


@pytest.mark.parametrize(("name", "depth"), [("fcn-1", 1), ("fcn-12", 12)])
def test_fcn_of_other_depths(name, depth):
    linear = [module for module in build(name).modules() if isinstance(module, nn.Linear)]
    assert len(linear) == depth


def kinds(name, **options):
    with torch.device("meta"):
        return {type(module) for module in build(name, **options).modules()}


def test_options_reach_the_network():
    assert nn.SiLU in kinds("fcn-3", activation="swish")
    assert nn.LeakyReLU in kinds("lenet5", activation="leaky_relu")
    assert nn.BatchNorm2d in kinds("lenet5", batchnorm=True)
    assert nn.Dropout in kinds("vgg11", dropout=0.5)
    assert nn.MaxPool2d in kinds("resnet18", stem="imagenet")


def test_defaults():
    assert kinds("fcn-3") & {nn.SiLU, nn.LeakyReLU, nn.ReLU} == {nn.ReLU}
    assert kinds("lenet5") & {nn.SiLU, nn.LeakyReLU, nn.ReLU} == {nn.ReLU}
    assert nn.BatchNorm2d not in kinds("lenet5")
    assert nn.Dropout not in kinds("vgg11")
    assert nn.MaxPool2d not in kinds("resnet18")


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("fcn-3", {"activation": "relu", "batchnorm": False, "dropout": 0.0}),
        ("lenet5", {"activation": "relu", "batchnorm": False, "dropout": 0.0}),
        ("vgg11", {"activation": "relu", "batchnorm": True, "dropout": 0.0}),
        ("resnet18", {"activation": "relu", "batchnorm": True, "dropout": 0.0, "stem": "paper"}),
    ],
)
def test_what_a_network_is_anyway_may_be_stated(name, stated):
    assert kinds(name, **stated) == kinds(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcn-3", {"batchnorm": True}, "fcn-3 cannot have batchnorm=True: its options are activ"),
        ("fcn-3", {"dropout": 0.5}, "cannot have dropout=0.5"),
        ("fcn-3", {"stem": "paper"}, "cannot have stem='paper'"),
        ("lenet5", {"dropout": 0.5}, "cannot have dropout=0.5: .* are activation, batchnorm$"),
        ("lenet5", {"activation": "gelu"}, "unknown activation 'gelu'"),
        ("vgg11", {"batchnorm": False}, "cannot have batchnorm=False: its options are dropout$"),
        ("vgg11", {"activation": "swish"}, "cannot have activation='swish'"),
        ("vgg11", {"dropout": -0.1}, "dropout is a probability"),
        ("resnet18", {"dropout": 0.5}, "cannot have dropout=0.5: its options are stem$"),
        ("resnet18", {"stem": "tiny"}, "unknown stem 'tiny'"),
        ("fcn-3", {"classes": 0}, "fcn-3 needs at least 1 class, not 0"),
        ("fcn-3", {"image_shape": (1, 0, 28)}, r"three positive numbers, not \(1, 0, 28\)"),
    ],
)
def test_what_a_network_cannot_be(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", ["alexnet", "fcn-0", "fcn-", "fcn-03", "fcn--3", "VGG16", ""])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=r"unknown network .*fcn-N .*lenet5, vgg11.*resnet152$"):
        build(name)


@pytest.mark.parametrize("name", ["fcn-3", "lenet5", "resnet18"])
def test_a_seed_fixes_the_weights(name):
    first, again, other = (build(name, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_a_seed_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build("lenet5", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_seed_leaves_it_alone_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="16x16"):
        build("lenet5", image_shape=(1, 4, 4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_weights_follow_the_global_random_state():
    torch.manual_seed(3)
    first = build().fc.weight
    second = build().fc.weight
    torch.manual_seed(3)
    assert torch.equal(build().fc.weight, first)
    assert not torch.equal(first, second)


def test_a_seeded_network_lands_on_the_default_device():
    with torch.device("meta"):
        network = build("lenet5", seed=1)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert build("lenet5", seed=1).fc.weight.device == torch.get_default_device()
