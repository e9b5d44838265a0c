import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, leaky_relu, linear, max_pool2d, relu, silu

from labelleak.lab.networks import LeNet5


@pytest.mark.parametrize(
    ("shape", "classes", "parameters"),
    [
        # Convolutions, then the layers of 120, 84 and C features, each with biases.
        ((1, 28, 28), 10, 156 + 2416 + 257 * 120 + 121 * 84 + 85 * 10),
        ((3, 32, 32), 100, 456 + 2416 + 401 * 120 + 121 * 84 + 85 * 100),
        ((1, 16, 20), 10, 156 + 2416 + 33 * 120 + 121 * 84 + 85 * 10),
    ],
)
@pytest.mark.parametrize("batchnorm", [False, True])
def test_sizes(shape, classes, parameters, batchnorm):
    network = LeNet5(classes=classes, image_shape=shape, batchnorm=batchnorm)
    counted = sum(p.numel() for p in network.parameters())
    assert counted == parameters + batchnorm * 2 * (6 + 16)
    assert network.fc.in_features == 84
    assert network(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", relu), ("swish", silu), ("leaky_relu", leaky_relu)]
)
def test_logits_are_the_layers_applied_in_turn(activation, function):
    network = LeNet5(classes=10, image_shape=(1, 28, 28), activation=activation).double()
    images = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    weights = list(network.parameters())
    x = max_pool2d(function(conv2d(images, *weights[0:2])), 2)
    x = max_pool2d(function(conv2d(x, *weights[2:4])), 2)
    x = function(linear(x.flatten(1), *weights[4:6]))
    x = function(linear(x, *weights[6:8]))
    torch.testing.assert_close(network(images), linear(x, *weights[8:10]))


def test_batchnorm_comes_before_the_activation():
    network = LeNet5(classes=10, image_shape=(1, 28, 28), activation="swish", batchnorm=True)
    for block, channels in zip(network.features, (6, 16), strict=True):
        kinds = [type(module) for module in block]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.MaxPool2d]
        assert block[1].num_features == channels


def test_images_too_small_for_the_poolings():
    with pytest.raises(ValueError, match="lenet5 needs images of at least 16x16 pixels, not 15x28"):
        LeNet5(classes=10, image_shape=(1, 15, 28))
