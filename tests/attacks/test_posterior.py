"""Expected counts against Bayes' rule, and against a guess."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelleak.attacks.posterior import expected_counts
from synthetic import rng


def test_exact_estimates_are_kept():
    raw = torch.tensor([5.0, 0.0, 1.0, 2.0]).double()
    assert torch.allclose(expected_counts(raw, 0.0, 8), raw)


def test_the_mean_is_that_of_two_normal_distributions():
    raw = torch.tensor([40.0, 0.0, 12.0, 8.0]).double()
    errors = torch.tensor([3.0, 1.0, 2.0, 6.0]).double()
    # They scatter by 301 on average, where a random batch and the errors make 23.75.
    prior = float((raw - 15.0).square().sum()) / 3 - float(errors.square().mean())
    by_hand = 15.0 + prior / (prior + errors.square()) * (raw - 15.0)
    torch.testing.assert_close(expected_counts(raw, errors, 60), by_hand)


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
    assert expected < 1.1 * min(guess, estimate)
