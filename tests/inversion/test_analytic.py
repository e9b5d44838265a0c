import pytest
import torch

from inverting import Client
from labelleak.errors import InvalidObservation
from labelleak.inversion import Analytic


@pytest.mark.parametrize("index", [0, 7])
def test_a_single_digit_is_read_off_the_first_layer(digits, index):
    client = Client(digits, [index], "fcn-3")
    found = client.invert(Analytic())
    assert client.psnr(found) > 60
    known = (found.method, found.mode, found.labels, found.distance)
    assert known == ("analytic", None, None, None)


def test_of_several_digits_it_gives_means(digits):
    client = Client(digits, [0, 1, 2])
    found = client.invert(Analytic())
    assert found.images.shape == client.truth.shape
    gradient = client.seen.gradients
    weight, bias = gradient["hidden.0.weight"].double(), gradient["hidden.0.bias"].double()
    strongest = int(bias.abs().argmax())
    mean, std = digits.mean[0], digits.std[0]
    expected = (weight[strongest] / bias[strongest] * std + mean).clamp(0, 1)
    torch.testing.assert_close(found.images[0].flatten().double(), expected, atol=1e-5, rtol=1e-4)


def test_a_first_layer_that_is_not_fully_connected_is_refused(digits):
    client = Client(digits, [4], "lenet5")
    with pytest.raises(InvalidObservation, match="first layer is fully connected"):
        client.invert(Analytic())
