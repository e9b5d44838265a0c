"""Features of classes, against the same update with its classes renamed."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from labelleak.attacks.virtual.class_features import SHARED_FROM, class_features
from synthetic import rng

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def states(classes, seed):
    """Weights before and after, of a small network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, classes)).double()
    before = {name: value.detach() for name, value in model.named_parameters()}
    after = {
        name: value + 0.1 * torch.randn(value.shape, generator=rng(seed), dtype=torch.float64)
        for name, value in before.items()
    }
    return before, after


def renamed(state, order):
    return {name: value[order] if name[0] == "2" else value for name, value in state.items()}


@given(st.integers(2, 30), st.integers(0, 1000))
def test_renamed_classes_have_renamed_rows(classes, seed):
    before, after = states(classes, seed)
    order = torch.randperm(classes, generator=rng(seed + 1))
    rows = class_features(before, after, NAMES, "2", 0.5)
    again = class_features(renamed(before, order), renamed(after, order), NAMES, "2", 0.5)
    torch.testing.assert_close(again, rows[order], rtol=1e-7, atol=1e-7)


def test_a_row_begins_with_the_bias_and_ends_with_what_all_share():
    before, after = states(4, 0)
    rows = class_features(before, after, NAMES, "2", 0.5)
    torch.testing.assert_close(rows[:, 0], (before["2.bias"] - after["2.bias"]) / 0.5)
    assert bool((rows[:, SHARED_FROM:] == rows[:1, SHARED_FROM:]).all())
    assert bool((rows[:, :SHARED_FROM].std(dim=0) > 0).all())


def test_deep_networks_have_no_more_features():
    body = {f"body{layer}.weight": torch.rand(3, 3, dtype=torch.float64) for layer in range(100)}
    before, after = states(4, 0)
    rows = class_features(
        before | body, after | {n: v + 1 for n, v in body.items()}, [*body, *NAMES], "2", 0.5
    )
    few = class_features(before | body, after | body, [*list(body)[:4], *NAMES], "2", 0.5)
    assert rows.shape == few.shape
