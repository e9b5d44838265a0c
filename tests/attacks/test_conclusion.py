import torch

from labelleak.attacks.conclusion import conclude
from labelleak.restoration import Flag
from synthetic import one_embedding

SEEN = one_embedding(4, 12, 3).observe()
UNSIZED = one_embedding(4, 12, 3).observe(batch_size=None)


def test_real_numbers_become_counts():
    raw = torch.tensor([2.4, -0.3, 0.9, 0.0], dtype=torch.float64)
    found = conclude(SEEN, raw, 3)
    assert found.counts.tolist() == [2, 0, 1, 0]
    assert found.rounded.tolist() == [2, 0, 1, 0]
    assert found.raw is raw
    torch.testing.assert_close(found.proportions.sum().item(), 1.0)
    assert found.flags == ()
    assert conclude(SEEN, raw * 3, 3).flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_shares_stay_shares():
    """Errors that an attack does not know leave the set to a guess, which is flagged."""
    raw = torch.tensor([0.7, -0.1, 0.4, 0.0], dtype=torch.float64)
    found = conclude(UNSIZED, raw, None)
    assert found.counts is None
    assert found.rounded is None
    torch.testing.assert_close(
        found.proportions, torch.tensor([0.65, 0.0, 0.35, 0.0], dtype=torch.float64)
    )
    assert bool(found.present[[0, 2]].all())
    assert found.flags == (Flag.SET_NOT_SURE,)


def test_no_class_outside_of_those_solved_for_fills_a_gap():
    raw = torch.tensor([1.2, 0.0, 0.9, 0.0], dtype=torch.float64)
    found = conclude(SEEN, raw, 6, among=torch.tensor([0, 2]))
    assert found.counts.tolist() == [3, 0, 3, 0]
    assert found.flags == (Flag.TOTAL_DOES_NOT_FIT,)


def test_errors_tell_the_set_and_standard_errors_are_for_the_reader():
    batch = one_embedding(4, 12, 8)
    batch.labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    seen, shares = batch.observe(batch_size=None), batch.counts / 8.0
    shares = shares.double() + torch.tensor([0.001, -0.001, -0.001, 0.001]).double()
    errors = torch.full((4,), 0.002, dtype=torch.float64)
    found = conclude(seen, shares, None, standard_errors=errors, errors=2.0 * errors)
    assert torch.equal(found.present, batch.present)
    assert found.standard_errors is errors
    assert found.flags == ()
    coarse = conclude(seen, shares, None, standard_errors=errors, errors=50.0 * errors)
    assert coarse.flags == (Flag.SET_NOT_SURE,)


def test_a_guess_of_the_total_is_no_surer_than_its_shares():
    batch = one_embedding(4, 12, 8)
    batch.labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    seen, raw = batch.observe(batch_size=None), batch.counts.double()
    sure = conclude(seen, raw, 8, errors=torch.full((4,), 0.1, dtype=torch.float64))
    assert torch.equal(sure.counts, batch.counts)
    assert sure.flags == ()
    assert conclude(seen, raw, 8).flags == (Flag.SET_NOT_SURE,)
    assert conclude(batch.observe(), raw, 8).flags == ()
