import itertools
import math
import sys

import numpy as np
import pytest
import torch

from labelleak.errors import LabelLeakError
from labelleak.inversion import assess, match
from labelleak.inversion import quality as module


def pictures(number, shape=(1, 12, 12), seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand((number, *shape), generator=random)


def least_cost(truth, images, allowed):
    """The best of all assignments, by trying them."""
    return min(
        sum(float((truth[i] - images[j]).square().sum()) for i, j in enumerate(order))
        for order in itertools.permutations(range(len(truth)))
        if allowed(order)
    )


def test_images_are_matched_by_the_least_squared_error():
    truth, images = pictures(5), pictures(5, seed=1)
    order = match(images, truth)
    assert sorted(order.tolist()) == list(range(5))
    cost = float((truth - images[order]).square().sum())
    assert cost == pytest.approx(least_cost(truth, images, lambda order: True), rel=1e-5)
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    assert match(truth[shuffled], truth).tolist() == shuffled.argsort().tolist()


def test_fixed_labels_keep_a_match_within_its_class():
    truth, images = pictures(5), pictures(5, seed=1)
    true_labels, labels = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([0, 0, 1, 1, 2])
    order = match(images, truth, labels, true_labels)
    assert labels[order].tolist() == true_labels.tolist()
    same = lambda order: [int(labels[j]) for j in order] == true_labels.tolist()  # noqa: E731
    cost = float((truth - images[order]).square().sum())
    assert cost == pytest.approx(least_cost(truth, images, same), rel=1e-5)


def test_what_a_wrong_count_leaves_over_is_matched_across_classes():
    truth = pictures(3)
    # The second image of class 0 was taken for one of class 1.
    order = match(truth[[2, 0, 1]], truth, torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]))
    assert order.tolist() == [1, 2, 0] or order.tolist() == [1, 0, 2]
    right = sum(int(a == b) for a, b in zip([0, 0, 1], [[1, 0, 1][j] for j in order], strict=True))
    assert right == 2


@pytest.mark.usefixtures("unchecked")
def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="differ"):
        match(pictures(2), pictures(3))
    with pytest.raises(ValueError, match="differ"):
        assess(pictures(2), pictures(3))
    with pytest.raises(ValueError, match="both sides"):
        match(pictures(2), pictures(2), torch.tensor([0, 1]))


def test_psnr_is_ten_decades_of_the_mean_squared_error_with_peak_one():
    truth = pictures(3)
    images = (truth + 0.1 * pictures(3, seed=2)).clamp(0, 1)
    found = assess(images, truth)
    errors = (images - truth).double().square().mean(dim=(1, 2, 3))
    assert found.psnr == pytest.approx((-10 * errors.log10()).tolist(), rel=1e-5)
    assert found.mean("psnr") == pytest.approx(np.mean(found.psnr))
    best = found.best(2)
    assert [found.psnr[i] for i in best] == sorted(found.psnr, reverse=True)[:2]
    assert found.mean("psnr", best) == pytest.approx(np.mean(sorted(found.psnr)[1:]))


def test_ssim_of_flat_images_is_their_luminance_term():
    truth, images = torch.full((1, 1, 16, 16), 0.4), torch.full((1, 1, 16, 16), 0.6)
    constant = 0.01**2
    expected = (2 * 0.4 * 0.6 + constant) / (0.4**2 + 0.6**2 + constant)
    assert assess(images, truth).ssim == pytest.approx([expected], rel=1e-4)
    assert assess(truth, truth).ssim == pytest.approx([1.0])
    assert assess(pictures(1, (1, 8, 8)), pictures(1, (1, 8, 8), seed=1)).ssim is None


def test_equal_images_have_an_infinite_psnr_and_a_record_all_the_same():
    truth = pictures(2)
    images = truth.clone()
    images[1] += 0.01
    found = assess(images, truth)
    assert found.psnr[0] == math.inf
    content = found.as_dict()
    assert content["psnr"][0] is None
    assert content["psnr"][1] == pytest.approx(40, abs=0.01)


def test_lpips_is_not_available_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = assess(pictures(1), pictures(1, seed=1))
    assert found.lpips is None
    assert found.mean("lpips") is None
    assert found.as_dict()["lpips"] == "not available"


def test_lpips_is_there_with_its_weights(monkeypatch):
    def distances(one, other):
        return (one - other).abs().mean(dim=(1, 2, 3)).tolist()

    monkeypatch.setattr(module, "_lpips", lambda: distances)
    truth, images = pictures(2), pictures(2, seed=1)
    expected = (truth - images).abs().mean(dim=(1, 2, 3)).tolist()
    assert assess(images, truth).as_dict()["lpips"] == pytest.approx(expected)


def test_a_missing_torchmetrics_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(LabelLeakError, match=r"pip install 'labelleak\[images\]'"):
        assess(pictures(1), pictures(1))
