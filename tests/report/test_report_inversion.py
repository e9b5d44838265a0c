import re

import pytest
import torch

from labelleak.inversion.pictures import png
from labelleak.report.inversion import inversion_page, pixel_error


@pytest.fixture
def inversion():
    return {
        "schema": "labelleak/inversion/1",
        "version": "0.1.0",
        "source": {"before": "model.safetensors", "gradients": "g.safetensors"},
        "network": {"name": "fcn-2"},
        "result": {
            "method": "ig", "mode": "restored", "attack": "exact", "distance": 0.01234,
            "iterations": 60, "interrupted": False, "flags": ["no_bias"],
        },
        "score": {"psnr": [10.0, None, 20.0], "ssim": [0.1, 1.0, 0.5], "lpips": "not available"},
        "seconds": 3.2,
    }  # fmt: skip


@pytest.fixture
def pictures():
    return [png(torch.full((1, 4, 4), shade)) for shade in (0.1, 0.5, 0.9)]


@pytest.mark.parametrize("decibels", [0.0, 6.5, 20.0, 41.2])
def test_an_error_is_what_the_signal_to_noise_ratio_says(decibels):
    truth = torch.full((100,), 0.5, dtype=torch.float64)
    found = truth + pixel_error(decibels) * (-1.0) ** torch.arange(100)
    error = (found - truth).square().mean()
    assert float(-10 * torch.log10(error)) == pytest.approx(decibels)


def test_the_best_pictures_are_first_and_beside_the_true_ones(inversion, pictures, document):
    page = inversion_page(inversion, pictures, pictures[::-1], flat=0.3)
    text = document(page).text
    # 100, 10 and 0 percent of error would be 0, 20 and infinitely many decibels.
    assert re.findall(r"(\d{3}): off by (\d+)%", page) == [
        ("001", "0"),
        ("002", "10"),
        ("000", "32"),
    ]
    assert "3 images were found. A pixel is off by 14% of the range" in text
    assert "A picture of one color, which shows nothing, is off by 30%." in text
    assert page.count("image-rendering: pixelated") == 1
    assert [a["alt"].split(" as ")[0] for tag, a in document(page).tags if tag == "img"] == [
        "image 2", "image 2", "image 3", "image 3", "image 1", "image 1"
    ]  # fmt: skip
    assert "LPIPS" not in text


def test_the_numbers_are_said_in_words(inversion, pictures, document):
    text = document(inversion_page(inversion, pictures, flags={"no_bias": "there is none"})).text
    for told in (
        "labels restored from the same update, by exact",
        "0.0123. Cosine distance of their gradient from the one that was sent: 0 is the same",
        "no_bias: there is none",
        "no evidence of privacy",
    ):
        assert told in text


def test_without_the_true_images_nothing_is_scored(inversion, pictures, document):
    text = document(inversion_page(inversion | {"score": None}, pictures[:1])).text
    assert "1 image was found." in text
    assert "labelleak invert --truth" in text
    assert "off by" not in text
    assert "own images" not in text


def test_an_interrupted_search_says_so(inversion, pictures):
    inversion["result"] |= {"interrupted": True, "mode": None, "distance": None}
    assert "The search was interrupted" in inversion_page(inversion, pictures)


def test_the_page_loads_nothing_and_names_are_text(inversion, pictures, document):
    inversion["network"]["name"] = inversion["source"]["before"] = '"><script>alert(1)</script>'
    parsed = document(inversion_page(inversion, pictures, pictures))
    loaded = [url for url in parsed.loads() if not url.startswith("data:image/png;base64,")]
    assert loaded == []
    assert "script" not in {tag for tag, _ in parsed.tags}


def test_it_is_no_wider_than_a_phone(inversion, pictures, overflow):
    inversion["source"]["before"] = "unbreakable" * 40
    assert overflow(inversion_page(inversion, pictures, pictures), 390) == 390
