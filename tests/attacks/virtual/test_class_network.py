"""The networks for all classes, on shares that are a known map of the rows."""

import torch

from labelleak.attacks.virtual import class_network as module
from synthetic import rng


def clients(number, classes, noise, seed):
    """Rows whose shares follow from three of their five features."""
    rows = torch.randn(number, classes, 5, generator=rng(seed), dtype=torch.float64)
    own = noise * torch.randn(number, classes, generator=rng(seed + 2), dtype=torch.float64)
    return rows, torch.softmax(torch.tanh(rows[..., 0]) + 0.5 * rows[..., 1] + own, dim=1)


def test_one_map_serves_all_classes():
    rows, shares = clients(120, 6, 0.0, 0)
    asked, wanted = clients(1, 6, 0.0, 50)
    found = module.read_rows(rows, shares, asked[0])
    assert float((found.shares - wanted[0]).abs().sum()) < 0.1
    renamed = torch.tensor([3, 1, 0, 2, 5, 4])
    other = module.read_rows(rows, shares, asked[0, renamed])
    torch.testing.assert_close(other.shares, found.shares[renamed], rtol=0, atol=1e-5)


def test_what_is_known_is_not_predicted():
    """Shares lie below a smooth map by numbers that have nothing to do with rows."""
    rows, mean = clients(121, 4, 0.0, 1)
    known = 0.1 * torch.randn(121, 4, generator=rng(4), dtype=torch.float64)
    known -= known.mean(dim=1, keepdim=True)
    shares = mean - known
    found = module.read_rows(rows[:-1], shares[:-1], rows[-1], known)
    assert float((found.shares - shares[-1]).abs().sum()) < 0.1
    blind = module.read_rows(rows[:-1], shares[:-1], rows[-1])
    assert float((blind.shares - shares[-1]).abs().sum()) > 0.15


def test_errors_are_those_of_clients_left_out():
    """Noise that no row shows: a log-share's error, so one in proportion to the share."""
    rows, shares = clients(122, 16, 0.4, 7)
    off = []
    for row, own in zip(rows[120:], shares[120:], strict=True):
        found = module.read_rows(rows[:120], shares[:120], row)
        off.append((found.shares - own) / found.errors(found.shares))
    assert 0.4 < float(torch.stack(off).square().mean().sqrt()) < 1.4
    low, high = found.errors(torch.tensor([0.02, 0.2], dtype=torch.float64)).tolist()
    assert low < high


def test_what_was_never_seen_is_novel_and_less_sure():
    rows, shares = clients(60, 5, 0.1, 3)
    usual = module.read_rows(rows[1:], shares[1:], rows[0])
    far = module.read_rows(rows[1:], shares[1:], rows[0] + 8.0)
    assert 0.5 < usual.novelty < 2.0
    assert far.novelty > 2.0 * usual.novelty
    even = torch.full((5,), 0.2, dtype=torch.float64)
    assert bool((far.errors(even) > usual.errors(even)).all())


def test_the_caller_s_random_numbers_are_left_alone(monkeypatch):
    rows, shares = clients(30, 3, 0.1, 5)
    monkeypatch.setattr(module, "_STEPS", 3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        one, again = (module.read_rows(rows, shares, rows[0]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.shares, again.shares)


def test_of_very_many_classes_some_are_used_for_novelty(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 240)
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 90)
    monkeypatch.setattr(module, "_STEPS", 3)
    rows, shares = clients(40, 90, 0.1, 5)
    found = module.read_rows(rows, shares, rows[0])
    assert found.shares.shape == (90,)
    assert found.novelty >= 0.0
