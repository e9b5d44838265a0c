import math

import pytest
import torch
from torch import nn

from labelleak.lab import networks
from labelleak.lab.networks._layers import activation_layer


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: x if x > 0 else 0.0),
        ("swish", lambda x: x / (1 + math.exp(-x))),
        ("leaky_relu", lambda x: x if x > 0 else 0.01 * x),
    ],
)
def test_activations_follow_their_formulas_and_leave_the_input_alone(name, formula):
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    before = x.clone()
    expected = torch.tensor([formula(value) for value in before.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activation_layer(name)(x), expected)
    assert torch.equal(x, before)


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown activation 'gelu': .* relu, swish, leaky_relu$"):
        activation_layer("gelu")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet5", (3, 32, 32)), ("vgg11", (3, 32, 32)), ("resnet18", (3, 8, 8))],
)
def test_convolutions_start_by_hes_rule_and_linear_layers_by_pytorchs(name, shape):
    network = networks.build(name, classes=10, image_shape=shape, seed=0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            # Six standard errors of the estimate; PyTorch's default is far outside.
            error = 6 * spread / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(spread, abs=error)
            assert module.weight.abs().max() > 2 * spread  # normal, not uniform
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            assert 0.9 * bound < module.weight.abs().max() <= bound
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_untrained_vgg_still_tells_images_apart():
    # Under PyTorch's default for convolutions, the embeddings differ by about 2e-5 of their
    # size: the inputs would not matter and every attack would look exact.
    network = networks.build("vgg16", classes=10, image_shape=(3, 32, 32), seed=0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = network.classifier[:6](network.features(images).flatten(1))
    assert (first - second).norm() > 0.01 * first.norm()
