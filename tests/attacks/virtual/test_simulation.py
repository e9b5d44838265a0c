import pytest
import torch
from torch import nn

from labelleak import Auxiliary, LocalTraining
from labelleak.attacks.virtual.drawing import auxiliary_samples, batches_of
from labelleak.attacks.virtual.regression import _fall, regress, similarities, spread_at
from labelleak.attacks.virtual.shown import behavior, sketched
from labelleak.federated import train_locally
from synthetic import rng


def test_a_sketch_keeps_inner_products():
    one, other = torch.randn(2, 300_000, generator=rng(0)).double()
    other = other + one
    kept = sketched(one) @ sketched(other)
    # Standard deviation of the sketch: |one| |other| sqrt(2 / entries kept).
    assert (
        abs(float(kept - one @ other)) < 5 * float(one.norm() * other.norm()) * (2 / 2**15) ** 0.5
    )
    assert torch.equal(sketched(one[:100]), one[:100])


def test_pools_share_no_sample():
    labels = torch.arange(3).repeat(10)
    held = auxiliary_samples(Auxiliary(torch.arange(30.0)[:, None], labels), 3)
    counts = torch.tensor([50, 0, 70])
    drawn = [held(counts, pool, rng(pool)) for pool in (0, 1)]
    for inputs, own in drawn:
        assert torch.equal(torch.bincount(own, minlength=3), counts)
        assert torch.equal(inputs[:, 0].long() % 3, own)
    seen = [set(inputs[:, 0].tolist()) for inputs, _ in drawn]
    assert not seen[0] & seen[1]


def test_counts_do_not_change_what_is_drawn_first():
    labels = torch.arange(3).repeat(10)
    held = auxiliary_samples(Auxiliary(torch.arange(30.0)[:, None], labels), 3)
    one, other = (
        held(torch.tensor(counts), 0, rng(3))[0].split(counts) for counts in ([8, 4, 0], [5, 4, 3])
    )
    assert torch.equal(one[0][:5], other[0])
    assert torch.equal(one[1], other[1])


def test_counts_do_not_change_the_order_of_samples_that_stay():
    """All batches together are the order of an epoch."""
    model, recipe = nn.Linear(4, 2), LocalTraining(learning_rate=0.1, batch_size=8, epochs=2)
    own, labels = torch.randn(40, 4, generator=rng(5)), torch.arange(40) % 2
    seen = train_locally(model, own, labels, recipe, classes=2).observe(model)
    orders = []
    for counts in ((30, 10), (25, 15)):
        labels = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        batches = batches_of(seen, labels, rng(4))
        assert sorted(map(len, batches)) == [8] * 10
        epochs = torch.cat(batches).split(40)
        assert all(torch.equal(order.sort().values, torch.arange(40)) for order in epochs)
        assert not torch.equal(*epochs)
        # Samples of the first class that both have, by their place in it.
        orders.append(torch.cat([order[order < 25] for order in epochs]))
    assert torch.equal(*orders)


def test_behavior_is_the_mean_log_probability_by_class():
    model = nn.Linear(4, 3)
    inputs, labels = torch.randn(6, 4, generator=rng(1)), torch.tensor([0, 0, 1, 1, 2, 2])
    state = {"weight": torch.ones(3, 4), "bias": torch.tensor([0.0, 1.0, 2.0])}
    found = behavior(model, state, (inputs, labels)).reshape(3, 3)
    expected = torch.log_softmax(state["bias"], dim=0).expand(3, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clients", [24, 60])
def test_the_regression_finds_a_linear_map(clients):
    """Targets are linear in the updates but for noise; an independent solution is known."""
    generator = rng(2)
    targets = torch.rand(clients + 1, 3, generator=generator).double()
    mixing = torch.randn(3, 50, generator=generator).double()
    noise = 0.01 * torch.randn(clients + 1, 50, generator=generator).double()
    updates = targets @ mixing + noise
    seen = [{"fc.weight": row} for row in updates[:-1]]
    pools = torch.arange(clients) % 2
    weights, known = torch.ones(clients).double(), torch.zeros_like(targets)
    choices = similarities(seen, {"fc.weight": updates[-1]}, "fc", weights)
    found = regress(choices, targets[:-1], pools, weights, known)
    assert float((found.values - targets[-1]).abs().max()) < 0.03
    assert float(found.errors.max()) < 0.03
    far = similarities(seen, {"fc.weight": updates[-1] + 5.0}, "fc", weights)
    novelty = regress(far, targets[:-1], pools, weights, known).novelty
    assert novelty > 3 * max(found.novelty, 0.5)


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
@pytest.mark.parametrize("far", [1e-12, 1e-6, 1.0])
def test_near_clients_are_told_apart_beside_far_ones(spread, far):
    """Single precision rounds the products of the far by more than the near ones differ."""
    generator, clients = rng(3), 60
    shares = torch.rand(clients + 1, 3, generator=generator).double()
    mixing = torch.randn(3, 200, generator=generator)
    updates = 3.0 + spread * (shares.float() @ mixing)
    updates[: clients // 2] = torch.randn(clients // 2, 200, generator=generator)
    weights = torch.where(torch.arange(clients) < clients // 2, far, 1.0).double()
    seen = [{"fc.weight": row} for row in updates[:-1]]
    choices = similarities(seen, {"fc.weight": updates[-1]}, "fc", weights)
    pools, known = torch.arange(clients) % 2, torch.zeros_like(shares)
    found = regress(choices, shares[:-1], pools, weights, known)
    off = (found.values - shares[-1]).abs()
    assert bool((off < 4.0 * found.errors).all())
    if far < 1.0 and spread > 1e-3:
        assert float(off.max()) < 0.01


def test_what_is_known_beforehand_is_added_to_what_is_predicted():
    """Shares are what is known and half the update, which says nothing of the former."""
    generator, clients = rng(4), 40
    updates = torch.randn(clients + 1, 3, generator=generator).double()
    known = torch.rand(clients + 1, 3, generator=generator).double()
    shares = known + updates / 2
    seen = [{"fc.weight": row} for row in updates[:-1]]
    pools, weights = torch.arange(clients) % 2, torch.ones(clients).double()
    choices = similarities(seen, {"fc.weight": updates[-1]}, "fc", weights)
    found = regress(choices, shares[:-1], pools, weights, known)
    torch.testing.assert_close(found.values, shares[-1], rtol=0, atol=1e-3)


def test_errors_are_those_of_all_virtual_clients():
    """Errors of variance ``a + b / n`` from clients of one pool, against what the law says."""
    generator, weights = rng(7), torch.ones(20_000).double()
    for level, slope, expected in ((1.0, 0.0, 1.0), (1.0, 30.0, 1.5 / 2.0), (0.0, 60.0, 0.5)):
        halves, quarters = (
            (level + slope / n) * torch.randn(20_000, 1, generator=generator).double().square()
            for n in (30, 15)
        )
        assert abs(_fall(halves, quarters, weights) - expected) < 0.03
    nothing = torch.zeros(4, 1).double()
    assert _fall(nothing, nothing, torch.ones(4).double()) == 1.0


def test_errors_are_those_of_the_shares_that_are_asked_for():
    """Errors are drawn whose variance is a class's own factor times ``1 + 20 s``."""
    generator, clients = rng(5), 4000
    shares = torch.rand(clients, 3, generator=generator).double() ** 3
    factors = torch.tensor([1.0, 4.0, 0.25]).double()
    variances = factors * (1 + 20 * shares)
    squares = variances * torch.randn(clients, 3, generator=generator).double().square()
    weights = torch.ones(clients).double()
    for at in (0.0, 0.05, 0.8):
        expected = factors * (1 + 20 * at)
        found = spread_at(torch.full((3,), at).double(), squares, shares, weights)
        torch.testing.assert_close(found, expected, rtol=0.15, atol=0)


def test_no_share_is_taken_for_known():
    """Errors in proportion to the shares, and a share of nothing: a tenth of the mean is left."""
    shares = torch.rand(500, 2, generator=rng(6)).double()
    found = spread_at(torch.zeros(2).double(), shares, shares, torch.ones(500).double())
    assert float(found.min()) > 0.05 * float(shares.mean())
    nothing = torch.zeros_like(shares)
    assert spread_at(shares[0], nothing, shares, torch.ones(500).double()).tolist() == [0.0, 0.0]
