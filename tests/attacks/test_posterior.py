"""Expected counts against Bayes' rule, and against a guess."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelleak.attacks.posterior import expected_counts, is_noise
from synthetic import rng


def test_exact_estimates_are_kept():
    raw = torch.tensor([5.0, 0.0, 1.0, 2.0]).double()
    assert torch.allclose(expected_counts(raw, 0.0, 8), raw)


def test_the_mean_is_that_of_two_normal_distributions():
    """Estimates that scatter as a random batch of 60 would: a variance of 15 times 3/4."""
    raw = torch.tensor([19.0, 12.0, 12.0, 17.0]).double()
    errors = torch.tensor([3.0, 1.0, 2.0, 6.0]).double()
    by_hand = 15.0 + 11.25 / (11.25 + errors.square()) * (raw - 15.0)
    torch.testing.assert_close(expected_counts(raw, errors, 60), by_hand)


def test_one_class_alone_is_no_accident():
    raw = torch.zeros(10).double()
    raw[3] = 1000.0
    assert float((expected_counts(raw, 2.0, 1000) - raw).abs().max()) < 0.5


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), error=st.sampled_from([1.0, 5.0, 50.0]))
def test_no_estimate_is_worse_than_a_guess(seed, error):
    """Batches drawn at random, and errors that are known."""
    generator = rng(seed)
    guess, estimate, expected = 0.0, 0.0, 0.0
    for _ in range(40):
        labels = torch.randint(20, (100,), generator=generator)
        true = torch.bincount(labels, minlength=20).double()
        raw = true + error * torch.randn(20, generator=generator).double()
        guess += float((true - 5.0).square().mean())
        estimate += float((true - raw).square().mean())
        expected += float((true - expected_counts(raw, error, 100)).square().mean())
    # One batch in hundreds scatters by so much that its errors are taken for counts in part.
    assert expected < 1.1 * min(guess, estimate) + 0.03 * estimate


@pytest.mark.parametrize("classes", [5, 10, 100])
def test_estimates_of_uneven_batches_are_no_noise_unless_errors_hide_them(classes):
    generator = rng(3)
    size, shares = 64 * classes, torch.tensor([1.0, 2.0, 3.0, 4.0, 15.0]).repeat(classes // 5)
    precise, hidden, even = 0, 0, 0
    for _ in range(100):
        labels = torch.multinomial(shares, size, replacement=True, generator=generator)
        true = torch.bincount(labels, minlength=classes).double()
        scatter = torch.randn(classes, generator=generator).double()
        off = torch.full_like(true, 8.0)
        precise += is_noise(true + 8.0 * scatter, off, size, confirmed=True)
        # Estimates far too close to even ones for errors this large, as those of a strong ridge.
        close = 64.0 + 0.1 * (true - 64.0)
        hidden += is_noise(close, 100.0 * torch.ones_like(true), size, confirmed=False)
        even += is_noise(torch.full_like(true, 64.0), off, size, confirmed=False)
    assert precise == 0
    assert hidden == even == 100


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_noise_of_the_size_that_errors_claim_is_noise_where_even_counts_are_confirmed(classes):
    generator, size = rng(5), 64 * classes
    off = torch.full((classes,), 20.0).double()
    noise = 0
    for _ in range(200):
        labels = torch.randint(classes, (size,), generator=generator)
        true = torch.bincount(labels, minlength=classes).double()
        raw = true + off * torch.randn(classes, generator=generator).double()
        noise += is_noise(raw, off, size, confirmed=True)
    # Chance passes three standard errors of a sample variance in one to three of a hundred.
    assert noise >= 190
