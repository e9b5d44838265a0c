import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labelleak.attacks import restore
from labelleak.errors import MissingKnowledge
from labelleak.observation import HeadGradient
from synthetic import one_embedding, rng, untrained

# `labelleak.attacks` is the function of that name.
module = importlib.import_module("labelleak.attacks.mean_prediction.pooled")

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("classes", "features", "size"), [(5, 1, 1), (10, 30, 64), (40, 7, 500)])
def test_with_one_embedding_everything_is_exact(classes, features, size):
    batch = one_embedding(classes, features, size)
    found = restore(batch.observe(), "pooled")
    assert torch.equal(found.counts, batch.counts)
    assert torch.allclose(found.raw, batch.counts.double(), atol=1e-8)
    assert float(found.standard_errors.max()) < 1e-6


def test_it_holds_where_quotients_of_single_rows_are_noise():
    wrong = {"ilrg": 0, "pooled": 0}
    for seed in range(20):
        batch = untrained(10, 100, 128, seed, spread=0.3)
        for name in wrong:
            wrong[name] += int((restore(batch.observe(), name).counts != batch.counts).sum())
    # Over 100 seeds the share is 0.12, over any 20 of them at most 0.18.
    assert wrong["pooled"] < 0.3 * wrong["ilrg"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_enters_exactly(reduction, smoothing, weighted):
    """Against autograd, with one embedding, where the mean prediction is exact."""
    batch = one_embedding(7, 11, 40)
    weights = torch.rand(7, generator=rng(3), dtype=torch.float64) + 0.3 if weighted else None
    gradient = batch.autograd(reduction=reduction, label_smoothing=smoothing, weight=weights)
    seen = batch.observe(
        gradient, reduction=reduction, label_smoothing=smoothing, class_weights=weights
    )
    found = restore(seen, "pooled")
    assert torch.allclose(found.raw, batch.counts.double(), atol=1e-7)
    assert torch.equal(found.counts, batch.counts)


@settings(max_examples=25)
@example(seed=54, classes=2, size=1)
@given(seed=SEEDS, classes=st.integers(2, 12), size=st.integers(1, 60))
def test_permuting_classes_permutes_counts_that_sum_to_the_batch(seed, classes, size):
    batch = untrained(classes, 6, size, seed)
    found = restore(batch.observe(), "pooled")
    assert int(found.counts.sum()) == size
    assert float(found.raw.sum()) == pytest.approx(size)
    order = torch.randperm(classes, generator=rng(seed))
    batch.weight, batch.bias = batch.weight[order], batch.bias[order]
    batch.labels = order.argsort()[batch.labels]
    permuted = restore(batch.observe(), "pooled")
    # Replicates draw a sign for each row in turn: what they add is within its error, taken over
    # all counts.
    difference = (permuted.raw - found.raw[order]).norm()
    errors = found.standard_errors
    if errors is not None:
        assert float(difference) <= float(errors.norm()) + 1e-9
    # Two rows are one up to its sign, and leave nothing to draw.
    assert classes > 2 or float(difference) < 1e-9


def covered(spread, noise=0.0):
    inside = []
    for seed in range(120):
        batch = untrained(20, 60, 50, seed, spread=spread)
        gradient, generator = batch.gradient(), rng(seed + 1)
        gradient = HeadGradient(
            *(
                tensor + noise * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                for tensor in (gradient.weight, gradient.bias)
            )
        )
        found = restore(batch.observe(gradient), "pooled")
        low, high = found.intervals.T
        inside.append((low <= batch.counts) & (batch.counts <= high))
    return float(torch.cat(inside).double().mean())


@pytest.mark.parametrize(("spread", "noise"), [(0.3, 0.0), (0.1, 5e-3)])
def test_intervals_hold_what_they_promise(spread, noise):
    assert 0.90 <= covered(spread, noise) <= 0.99


def test_networks_that_have_learned_get_no_errors_that_would_not_hold():
    """Classes apart in the direction of their rows, as after training: few counts are right."""
    right = []
    for seed in range(20):
        batch = untrained(20, 60, 40, seed, spread=0.3)
        batch.weight *= 8.0
        batch.embeddings = (batch.embeddings + 0.3 * batch.weight[batch.labels]).relu()
        found = restore(batch.observe(), "pooled")
        right.append(found.counts == batch.counts)
        assert found.standard_errors is None
        assert found.unreliable or torch.equal(found.counts, batch.counts)
    assert float(torch.cat(right).double().mean()) < 0.9


def test_the_same_observation_gives_the_same_result():
    seen = untrained(10, 20, 30).observe()
    torch.manual_seed(1)
    one = restore(seen, "pooled")
    torch.manual_seed(2)
    other = restore(seen, "pooled")
    torch.testing.assert_close(other.raw, one.raw, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.standard_errors, one.standard_errors, rtol=0, atol=1e-9)


def test_samples_that_take_part_in_every_epoch_count_once():
    batch = untrained(6, 12, 8)
    once = restore(batch.observe(), "pooled")
    twice = restore(batch.observe(local_steps=2, local_epochs=2), "pooled")
    assert torch.equal(once.counts, twice.counts)
    torch.testing.assert_close(once.raw, twice.raw)


def test_a_bias_gradient_that_is_all_rounding_is_refused_with_the_reason():
    """In half precision, where mistakes of the two classes cancel."""
    weight = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    seen = replace(
        one_embedding(2, 3, 2).observe(), gradient=HeadGradient(weight, torch.full((2,), 1e-3))
    )
    with pytest.raises(MissingKnowledge, match="the same for every class"):
        restore(seen, "pooled")
    assert restore(seen).attack != "pooled"
