"""The share of pixels that a segmentation network's update gives away, on images of lesions."""

import pytest
import torch

import labelleak
from labelleak import Flag, Loss, MissingKnowledge
from lesions import SAMPLES, SIDE, lesions, segmenter, tissues


def observed(model, images, targets, loss):
    value = loss.value(model(images), targets)
    return labelleak.observe(
        model,
        list(torch.autograd.grad(value, list(model.parameters()))),
        batch_size=SAMPLES,
        loss=loss,
    )


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_share_of_lesions_is_told_within_five_percent(share):
    for seed in range(4):
        images, masks = lesions(share, 100 + seed)
        seen = observed(segmenter(seed), images, masks, Loss("bce", pixels=SIDE**2))
        found = labelleak.restore(seen)
        assert abs(float(found.proportions[1] / masks.mean()) - 1.0) < 0.05
        assert int(found.counts.sum()) == SAMPLES * SIDE**2
        # Which of thousands of pixels are right is never sure, and no interval is claimed.
        assert Flag.COUNTS_NOT_SURE in found.flags
        assert found.intervals is None


def test_shares_of_tissues_beside_void_pixels():
    images, masks = lesions(0.15, 7)
    targets = tissues(images, masks)
    targets[:, :4] = 255
    loss = Loss(ignore_index=255, pixels=SIDE**2)
    found = labelleak.restore(observed(segmenter(1, 3), images, targets, loss))
    kept = targets[targets != 255]
    expected = torch.bincount(kept, minlength=3).double() / len(kept)
    torch.testing.assert_close(found.proportions, expected, atol=0.02, rtol=0)
    assert found.counts is None
    assert Flag.UNKNOWN_BATCH_SIZE in found.flags


def test_several_findings_on_every_pixel():
    images, masks = lesions(0.1, 8)
    findings = torch.cat([masks, 1.0 - masks, masks * (images > 0.9)], dim=1)
    found = labelleak.restore(
        observed(segmenter(2, 3), images, findings, Loss("bce", pixels=SIDE**2))
    )
    expected = findings.mean(dim=(0, 2, 3)).double()
    torch.testing.assert_close(found.proportions, expected, atol=0.02, rtol=0)
    assert Flag.COUNTS_NOT_SURE in found.flags


def test_attacks_on_single_samples_are_refused_by_name():
    images, masks = lesions(0.1, 8)
    seen = observed(segmenter(2), images, masks, Loss("bce", pixels=SIDE**2))
    for name, attack in labelleak.list_attacks().items():
        if not attack.pixels and "cross_entropy" in attack.losses:
            with pytest.raises(
                MissingKnowledge, match=f"'{name}' does not hold for a head of pixels"
            ):
                labelleak.restore(seen, name)
