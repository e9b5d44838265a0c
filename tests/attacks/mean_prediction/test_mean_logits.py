from dataclasses import replace

import pytest
import torch

from labelleak.attacks.mean_prediction.mean_logits import mean_logits, shrunk
from labelleak.attacks.mean_prediction.regression import apply_weight, regress
from synthetic import rng, untrained


def test_the_mean_embedding_is_the_least_squares_fit_of_all_rows():
    batch = untrained(12, 9, 30)
    gradient = batch.gradient()
    fitted = torch.linalg.lstsq(gradient.bias[:, None], gradient.weight).solution[0]
    found = mean_logits(batch.observe())
    torch.testing.assert_close(found.embedding, fitted)
    logits = batch.weight @ fitted
    torch.testing.assert_close(found.logits, logits - logits.mean() + batch.bias)


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_blocks_of_rows_change_nothing(rows):
    batch = untrained(50, 30, 100)
    gradient = batch.gradient()
    whole, noise = regress(gradient.weight, gradient.bias, 5, double=True)
    found, same = regress(gradient.weight, gradient.bias, 5, double=True, block=rows * 30)
    torch.testing.assert_close(found, whole)
    assert same == pytest.approx(noise, abs=1e-12)
    logits = apply_weight(batch.weight, found, double=True, block=rows * 30)
    torch.testing.assert_close(logits, batch.weight @ whole)


def test_single_precision_changes_nothing_that_matters():
    seen = untrained(50, 30, 100).observe(dtype=torch.float32)
    small, large = mean_logits(seen), mean_logits(seen, small_head=0, block=7 * 30)
    torch.testing.assert_close(large.logits, small.logits, rtol=0, atol=1e-5)
    # A large head has fewer replicates.
    assert large.replicates.shape[1] < small.replicates.shape[1]
    spread = [float((one.replicates - one.logits[:, None]).std()) for one in (small, large)]
    assert 0.5 < spread[1] / spread[0] < 2.0


def test_noise_is_that_of_the_sums_over_the_classes():
    batch = untrained(40, 60, 30)
    generator = torch.Generator().manual_seed(1)
    noise = 1e-3 * torch.randn(40, 60, generator=generator, dtype=torch.float64)
    found = mean_logits(batch.observe())
    assert found.noise < 1e-12
    gradient = batch.gradient()
    _, seen = regress(gradient.weight + noise, gradient.bias, 2, double=True)
    assert seen == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_a_head_that_turned_toward_its_embeddings_has_learned(classes, turned):
    """As initialized its rows do not depend on the embeddings, however these are correlated."""
    told = 0
    for seed in range(20):
        batch = untrained(classes, 60, 40, seed, spread=0.5)
        stretched = torch.linspace(0.0, 3.0, 60).double()
        batch.embeddings = batch.embeddings * stretched
        if turned:
            batch.embeddings = batch.embeddings + 4.0 * batch.weight[batch.labels]
        told += mean_logits(batch.observe()).has_learned
    assert told >= 18 if turned else told <= 1


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_are_all_the_same_have_learned_nothing(seed):
    """Their squares less those of their mean are zero up to rounding, of either sign."""
    batch = untrained(2 + seed % 4, 60, 8, seed)
    batch.weight = batch.weight[:1].expand_as(batch.weight).clone()
    found = mean_logits(batch.observe())
    assert not found.has_learned
    assert found.expected == 0.0


@pytest.mark.parametrize("turned", [0.0, 4.0])
def test_embeddings_whose_fourth_power_underflows_tell_the_same(turned):
    batch = untrained(4, 60, 16, 1)
    batch.embeddings = batch.embeddings + turned * batch.weight[batch.labels]
    plain = batch.gradient()
    tiny = replace(plain, weight=1e-90 * plain.weight, rounding=1e-90 * plain.rounding)
    assert mean_logits(batch.observe()).has_learned == bool(turned)
    assert mean_logits(batch.observe(tiny)).has_learned == bool(turned)


def test_the_embedding_is_shrunk_by_what_its_error_explains():
    """Embeddings that are zero on average: least squares makes them too long."""
    shorter = 0
    for seed in range(20):
        batch = untrained(4, 60, 16, seed)
        batch.embeddings = torch.randn(16, 60, generator=rng(seed)).double()
        true = batch.weight @ batch.embeddings.mean(dim=0)
        true = true - true.mean() + batch.bias
        plain = mean_logits(batch.observe())
        found = shrunk(batch.observe(), plain)
        shorter += bool((found.logits - true).norm() < (plain.logits - true).norm())
    assert shorter >= 16
