import pytest
import torch
from torch import nn

from labelleak.lab.networks import VGG


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return VGG(*args, **kwargs)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "count"),
    [(11, 132_868_840), (13, 133_053_736), (16, 138_365_992), (19, 143_678_248)],
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_parameter_counts_of_torchvision(depth, count, dropout):
    network = on_meta(depth, classes=1000, image_shape=(3, 224, 224), dropout=dropout)
    assert parameters(network) == count
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_parameter_count_of_vgg16_on_small_images():
    assert parameters(on_meta(16, classes=100, image_shape=(3, 32, 32))) == 34_015_396


@pytest.mark.parametrize(
    ("shape", "features", "pooled"),
    [
        ((1, 32, 32), 512, False),
        ((3, 64, 96), 512 * 2 * 3, False),
        ((3, 224, 200), 512 * 7 * 6, False),
        ((3, 224, 224), 512 * 7 * 7, True),
        ((3, 256, 320), 512 * 7 * 7, True),
    ],
)
def test_what_is_left_of_the_image(shape, features, pooled):
    network = on_meta(11, classes=10, image_shape=shape)
    assert network.classifier[0].in_features == features
    assert isinstance(network.avgpool, nn.AdaptiveAvgPool2d) == pooled
    assert network(torch.empty(2, *shape, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_state_dict_has_torchvisions_names(dropout):
    # Of torchvision's vgg16_bn.
    state = on_meta(16, classes=1000, image_shape=(3, 224, 224), dropout=dropout).state_dict()
    assert len(state) == 97
    assert list(state)[:4] == [
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
    ]
    assert state["features.40.weight"].shape == (512, 512, 3, 3)
    assert state["features.41.running_var"].shape == (512,)
    assert [name for name in state if name.startswith("classifier")] == [
        f"classifier.{index}.{kind}" for index in (0, 3, 6) for kind in ("weight", "bias")
    ]


def test_batchnorm_follows_every_convolution():
    kinds = [type(module) for module in on_meta(19, classes=10, image_shape=(3, 32, 32)).features]
    assert kinds.count(nn.Conv2d) == 16
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert after == [[nn.BatchNorm2d, nn.ReLU]] * 16


def test_dropout_only_on_request():
    def rates(**options):
        network = on_meta(11, classes=10, image_shape=(3, 32, 32), **options)
        return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]

    assert rates() == []
    assert rates(dropout=0.3) == [0.3, 0.3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, "no VGG-12: choose a depth of 11, 13, 16, 19"),
        ({"dropout": 1.0}, r"probability in \[0, 1\), not 1.0"),
        ({"dropout": float("nan")}, r"probability in \[0, 1\), not nan"),
        ({"image_shape": (3, 32, 31)}, "at least 32x32 pixels, not 32x31"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**{"depth": 11, "classes": 10, "image_shape": (3, 32, 32), **options})
