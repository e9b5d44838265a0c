import torch

from labelleak.attacks.conclusion import conclude
from labelleak.restoration import Flag


def test_real_numbers_become_counts():
    raw = torch.tensor([2.4, -0.3, 0.9], dtype=torch.float64)
    found = conclude(raw, 3)
    assert found.counts.tolist() == [2, 0, 1]
    assert found.rounded.tolist() == [2, 0, 1]
    assert found.raw is raw
    torch.testing.assert_close(found.proportions.sum().item(), 1.0)
    assert found.flags == ()
    assert conclude(raw * 3, 3).flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_shares_stay_shares():
    found = conclude(torch.tensor([0.7, -0.1, 0.4], dtype=torch.float64), None)
    assert found.counts is None
    assert found.rounded is None
    torch.testing.assert_close(
        found.proportions, torch.tensor([0.65, 0.0, 0.35], dtype=torch.float64)
    )
    assert found.present.tolist() == [True, False, True]


def test_no_class_outside_of_those_solved_for_fills_a_gap():
    raw = torch.tensor([1.2, 0.0, 0.9, 0.0], dtype=torch.float64)
    found = conclude(raw, 6, among=torch.tensor([0, 2]))
    assert found.counts.tolist() == [3, 0, 3, 0]
    assert found.flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_with_standard_errors_a_share_is_clear_above_two_of_them():
    shares = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    errors = torch.tensor([0.1, 0.06, 0.05], dtype=torch.float64)
    found = conclude(shares, None, standard_errors=errors)
    assert found.present.tolist() == [True, False, True]
    assert found.standard_errors is errors
