import pytest
import torch
from torch import nn

from labelleak.lab.networks import ResNet


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return ResNet(*args, **kwargs)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "count", "tensors", "width"),
    [
        (18, 11_689_512, 122, 512),
        (34, 21_797_672, 218, 512),
        (50, 25_557_032, 320, 2048),
        (101, 44_549_160, 626, 2048),
        (152, 60_192_808, 932, 2048),
    ],
)
def test_sizes_of_torchvision(depth, count, tensors, width):
    network = on_meta(depth, classes=1000, image_shape=(3, 224, 224), stem="imagenet")
    assert parameters(network) == count
    assert len(network.state_dict()) == tensors
    assert network.fc.in_features == width


def test_parameter_count_of_resnet18_with_the_papers_stem():
    assert parameters(on_meta(18, classes=100, image_shape=(3, 32, 32))) == 11_220_132


@pytest.mark.parametrize(
    ("stem", "kernel", "sides"),
    [("paper", (3, 3), [224, 112, 56, 28]), ("imagenet", (7, 7), [56, 28, 14, 7])],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_stems(depth, stem, kernel, sides):
    network = on_meta(depth, classes=10, image_shape=(3, 224, 224), stem=stem)
    assert network.conv1.kernel_size == kernel
    seen = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _, __, out: seen.append(list(out.shape[2:])))
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 10)
    assert seen == [[side, side] for side in sides]


def test_one_channel():
    network = ResNet(18, classes=10, image_shape=(1, 8, 8)).eval()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_state_dict_has_torchvisions_names_in_its_order():
    state = on_meta(50, classes=1000, image_shape=(3, 224, 224), stem="imagenet").state_dict()
    batchnorm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def layers(prefix, convolution, norm):
        return [
            f"{prefix}{convolution}.weight",
            *(f"{prefix}{norm}.{entry}" for entry in batchnorm),
        ]

    block = [name for n in "123" for name in layers("layer1.0.", f"conv{n}", f"bn{n}")]
    start = layers("", "conv1", "bn1") + block + layers("layer1.0.downsample.", "0", "1")
    assert list(state)[: len(start)] == start
    assert list(state)[-2:] == ["fc.weight", "fc.bias"]
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert state["layer3.0.downsample.0.weight"].shape == (1024, 512, 1, 1)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_block_adds_its_input(depth):
    network = ResNet(depth, classes=10, image_shape=(3, 8, 8)).eval()
    block = network.layer1[1]
    last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    x = torch.randn(2, network.layer1[0].expansion * 64, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_bottlenecks_stride_in_the_3x3_convolution():
    block = on_meta(50, classes=10, image_shape=(3, 32, 32)).layer2[0]
    strides = [block.conv1.stride, block.conv2.stride, block.conv3.stride]
    assert strides == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "no ResNet-20: choose a depth of 18, 34, 50, 101, 152"),
        ({"stem": "cifar"}, "unknown stem 'cifar': choose one of paper, imagenet"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**{"depth": 18, "classes": 10, "image_shape": (3, 32, 32), **options})
