"""The regression for all classes, against one that leaves clients out by hand."""

import torch

from labelleak.attacks.virtual import class_regression as module
from synthetic import rng


def clients(number, classes, noise, seed):
    """Rows whose targets are a smooth map of three of their five features."""
    rows = torch.randn(number, classes, 5, generator=rng(seed), dtype=torch.float64)
    shares = torch.rand(number, classes, generator=rng(seed + 1), dtype=torch.float64)
    targets = torch.tanh(rows[..., 0]) + 0.3 * rows[..., 1] * rows[..., 2]
    own = torch.randn(number, classes, generator=rng(seed + 2), dtype=torch.float64)
    return rows, targets + noise * shares.sqrt() * own, shares


def test_one_map_serves_all_classes():
    rows, targets, shares = clients(80, 6, 0.0, 0)
    asked, wanted, _ = clients(1, 6, 0.0, 50)
    found = module.regress_rows(rows, targets, shares, asked[0])
    assert float((found.values - wanted[0]).abs().mean()) < 0.15


def test_errors_grow_as_those_of_clients_left_out():
    rows, targets, shares = clients(150, 4, 0.3, 7)
    found = module.regress_rows(rows, targets, shares, rows[0])
    low, high = found.errors(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    assert 0.15 < high < 0.6
    assert low < high


def test_what_was_never_seen_is_novel_and_less_sure():
    rows, targets, shares = clients(60, 5, 0.1, 3)
    usual = module.regress_rows(rows, targets, shares, rows[0])
    far = module.regress_rows(rows, targets, shares, rows[0] + 8.0)
    assert far.novelty > 2.0 * usual.novelty
    even = torch.full((5,), 0.2, dtype=torch.float64)
    assert bool((far.errors(even) > usual.errors(even)).all())


def test_a_client_is_predicted_from_all_others():
    rows, targets, _ = clients(12, 3, 0.2, 9)
    used, wanted = rows.flatten(0, 1), targets.flatten()
    kernel = module._kernel(used, used, 1.5) + 0.01 * torch.eye(36, dtype=torch.float64)
    errors, variances = module._left_out(torch.linalg.inv(kernel), wanted, 12)
    for client in range(12):
        own = torch.arange(3 * client, 3 * client + 3)
        others = torch.tensor([row for row in range(36) if row not in own.tolist()])
        solved = torch.linalg.solve(kernel[others][:, others], kernel[others][:, own])
        predicted = solved.T @ wanted[others]
        torch.testing.assert_close(errors[own], wanted[own] - predicted, rtol=1e-6, atol=1e-8)
        left = kernel[own][:, own] - kernel[own][:, others] @ solved
        torch.testing.assert_close(variances[own], left.diagonal(), rtol=1e-6, atol=1e-8)


def test_of_very_many_classes_some_are_used(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 240)
    rows, targets, shares = clients(40, 90, 0.1, 5)
    found = module.regress_rows(rows, targets, shares, rows[0])
    assert found.values.shape == (90,)
