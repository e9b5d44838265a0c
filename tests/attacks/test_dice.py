"""The share of pixels under a batch Dice loss, by autograd."""

import pytest
import torch

from labelleak import InvalidObservation, MissingKnowledge
from labelleak.attacks import dice_share
from lesions import lesions, segmenter


def step(model, images, masks):
    """Bias of the head and its gradient."""
    sure = model(images).sigmoid()
    value = 1 - (2 * (sure * masks).sum() + 1e-5) / (sure.sum() + masks.sum() + 1e-5)
    return model[-1].bias, torch.autograd.grad(value, model[-1].bias)[0]


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("offset", [-2.0, 0.0, 1.0])
def test_one_prediction_for_all_pixels_gives_the_share_exactly(share, offset):
    images, masks = lesions(0.1, 1)
    masks = (torch.rand(masks.shape, generator=torch.Generator().manual_seed(2)) < share).double()
    model = segmenter(0).double()
    torch.nn.init.zeros_(model[-1].weight)
    torch.nn.init.constant_(model[-1].bias, offset)
    assert dice_share(*step(model, images.double(), masks)) == pytest.approx(
        float(masks.mean()), rel=1e-3
    )


@pytest.mark.parametrize("offset", [-2.0, 0.3, 2.0])
def test_all_pixels_are_read_from_single_precision(offset):
    """Rounding takes such a gradient to either side of the largest that there is.

    Summed pixel by pixel it is off by up to 1e-4, and the share by five times that.
    """
    images, masks = lesions(0.1, 1)
    model = segmenter(0)
    torch.nn.init.zeros_(model[-1].weight)
    torch.nn.init.constant_(model[-1].bias, offset)
    found = dice_share(*step(model, images, torch.ones_like(masks)))
    assert found == pytest.approx(1.0, rel=2e-3)
    assert found <= 1.0


@pytest.mark.parametrize("beyond", [-1e-4, 1e-4, 5e-3])
def test_all_of_very_many_pixels_are_read(beyond):
    """A sum over millions of pixels is off by more than one that a test can afford."""
    largest = -2 * 0.25 / (1 + 0.5) ** 2
    found = dice_share(torch.zeros(1), torch.tensor([largest * (1 + beyond)]))
    assert found == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("share", "off"), [(0.05, 0.3), (0.2, 0.15)])
def test_the_share_of_an_untrained_network_is_nearly_right(share, off):
    for seed in range(6):
        images, masks = lesions(share, 40 + seed)
        found = dice_share(*step(segmenter(seed), images, masks))
        assert found == pytest.approx(float(masks.mean()), rel=off)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_such_gradient_is_refused():
    zero = torch.zeros(1)
    with pytest.raises(InvalidObservation, match="one output"):
        dice_share(torch.zeros(2), torch.zeros(2))
    with pytest.raises(InvalidObservation, match="finite"):
        dice_share(zero, zero / 0)
    for gradient in (0.1, -0.9):
        with pytest.raises(MissingKnowledge, match="none of a batch Dice loss"):
            dice_share(zero, torch.tensor([gradient]))
