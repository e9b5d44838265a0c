from itertools import pairwise

import pytest
import torch
from torch import nn

from labelleak.lab.networks import FCN


def linear_shapes(network):
    return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("layers", "widths"),
    [
        (1, [784, 10]),
        (2, [784, 300, 10]),
        (3, [784, 300, 300, 10]),
        (6, [784, 300, 300, 300, 300, 300, 10]),
    ],
)
def test_layer_widths(layers, widths):
    network = FCN(layers, classes=10, image_shape=(1, 28, 28))
    assert linear_shapes(network) == [(o, i) for i, o in pairwise(widths)]


def test_input_width_comes_from_the_image_shape():
    network = FCN(2, classes=100, image_shape=(3, 32, 20))
    assert linear_shapes(network) == [(300, 3 * 32 * 20), (100, 300)]
    assert network(torch.zeros(5, 3, 32, 20)).shape == (5, 100)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", nn.functional.relu),
        ("swish", nn.functional.silu),
        ("leaky_relu", nn.functional.leaky_relu),
    ],
)
def test_logits_are_the_layers_applied_in_turn(activation, function):
    network = FCN(3, classes=4, image_shape=(1, 5, 5), activation=activation).double()
    images = torch.randn(6, 1, 5, 5, dtype=torch.float64)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    x = function(images.reshape(6, 25) @ w1.T + b1)
    x = function(x @ w2.T + b2)
    torch.testing.assert_close(network(images), x @ w3.T + b3)


def test_no_layers():
    with pytest.raises(ValueError, match="at least 1 layer, not 0"):
        FCN(0, classes=10, image_shape=(1, 28, 28))
