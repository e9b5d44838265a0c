import pytest
import torch

from labelleak.audit.expected import expected_score
from labelleak.guess import best_guess
from labelleak.restoration import Restoration


def test_the_expected_share_is_that_of_draws():
    """Against the mean over normal draws, which shares nothing with the formula."""
    counts = torch.tensor([7, 3, 0, 10])
    raw = torch.tensor([7.2, 2.9, 0.3, 9.6]).double()
    errors = torch.tensor([0.5, 1.5, 0.1, 1.0]).double()
    found = Restoration(counts > 0, counts, raw=raw, standard_errors=errors)
    generator = torch.Generator().manual_seed(0)
    draws = raw + errors * torch.randn(200_000, 4, dtype=torch.float64, generator=generator)
    right = 1 - (draws - counts).abs().sum(dim=1).mean() / 40
    guess = best_guess(20, 4)
    guessed = 1 - (draws - guess.counts).abs().sum(dim=1).mean() / 40
    expected = expected_score(found)
    assert expected["by"] == "intervals"
    assert expected["accuracy"] == pytest.approx(float(right), abs=2e-3)
    assert expected["guess"] == pytest.approx(float(guessed), abs=2e-3)


def test_what_has_no_errors_has_no_expectation():
    counts = torch.tensor([1, 2])
    assert expected_score(Restoration(counts > 0, counts)) is None
    assert expected_score(Restoration(counts > 0)) is None
    sure = Restoration(counts > 0, counts, certain=torch.tensor([1, 1]))
    assert expected_score(sure) is None


def test_a_proof_is_all_right():
    counts = torch.tensor([20, 0])
    expected = expected_score(Restoration(counts > 0, counts, certified=True))
    assert expected["accuracy"] == 1.0
    assert expected["guess"] == 0.5
    assert expected["small_cells_told"] == 1
