import numpy as np
import pytest
import torch

from labelleak import Flag, InvalidObservation, MissingKnowledge, Restoration, combine
from labelleak.projection import project_to_counts

TRUE = torch.tensor([40, 5, 0, 15])


def told(raw, errors, *, flags=(), certified=False):
    raw = torch.as_tensor(raw, dtype=torch.float64)
    errors = None if errors is None else torch.as_tensor(errors, dtype=torch.float64)
    counts = project_to_counts(raw, 60)
    return Restoration(
        counts > 0,
        counts,
        raw=raw,
        standard_errors=errors,
        certified=certified,
        flags=flags,
    )


def rounds(seed, sizes=(1.0, 3.0, 6.0, 10.0, 10.0, 10.0)):
    """Rounds of which early ones tell more; half of an error's variance is common to all."""
    source = np.random.default_rng(seed)
    common = source.normal(size=4)
    return [
        told(
            TRUE.numpy() + size * (common + source.normal(size=4)) / 2**0.5,
            [size] * 4,
        )
        for size in sizes
    ]


def test_together_is_better_than_the_first_round_and_a_plain_mean():
    first, together, plain = [], [], []
    for seed in range(200):
        made = rounds(seed)
        first.append(float((made[0].raw - TRUE).square().mean()))
        together.append(float((combine(made).raw - TRUE).square().mean()))
        plain.append(float((torch.stack([one.raw for one in made]).mean(0) - TRUE).square().mean()))
    assert np.mean(together) < 1.02 * np.mean(first)
    assert np.mean(together) < 0.3 * np.mean(plain)


@pytest.mark.parametrize("sizes", [(1.0, 3.0, 6.0), (2.0,) * 8])
def test_intervals_hold_the_counts(sizes):
    held = []
    for seed in range(300):
        low, high = combine(rounds(seed, sizes)).intervals.unbind(dim=1)
        held.append(float(((low <= TRUE) & (high >= TRUE)).double().mean()))
    assert 0.92 < np.mean(held) < 0.98


def test_weights_make_the_variance_least():
    """Against a search of all weights in steps of 0.001."""
    found = combine([told([30, 30, 0, 0], [2, 2, 2, 2]), told([33, 27, 0, 0], [3, 3, 3, 3])])
    covariance = np.array([[4.0, 3.0], [3.0, 9.0]])
    weights = [np.array([1 - w, w]) for w in np.linspace(0, 1, 1001)]
    best = min(weights, key=lambda w: w @ covariance @ w)
    assert float(found.raw[0]) == pytest.approx(30 + 3 * best[1], abs=0.01)
    assert float(found.standard_errors[0]) == pytest.approx((best @ covariance @ best) ** 0.5)
    assert found.attack == "combined"
    assert int(found.counts.sum()) == 60


def test_a_proven_round_is_the_answer():
    proven = told([40.0, 5.0, 0.0, 15.0], None, certified=True)
    assert combine([told([30.0, 30.0, 0.0, 0.0], [1.0] * 4), proven]) is proven


def test_proofs_of_other_counts_are_of_other_data():
    proofs = [told(raw, None, certified=True) for raw in ([40.0, 5, 0, 15], [39.0, 6, 0, 15])]
    assert combine([proofs[0]] * 2) is proofs[0]
    with pytest.raises(InvalidObservation, match="proven counts differ"):
        combine(proofs)


def test_rounds_that_contradict_each_other_are_flagged():
    found = combine(
        [told([60.0, 0.0, 0.0, 0.0], [1.0] * 4), told([0.0, 60.0, 0.0, 0.0], [1.0] * 4)]
    )
    assert {Flag.ATTACKS_DISAGREE, Flag.COUNTS_NOT_SURE} <= {*found.flags}
    agreed = combine([told([40.01, 4.99, 0.0, 15.0], [0.1] * 4)] * 2)
    assert agreed.flags == ()


def test_a_doubt_about_one_round_stays_and_doubts_of_errors_are_judged_anew():
    """A round of which more might be told by another attack is among what is known in all."""
    one = told([40.0, 5.0, 0.0, 15.0], [0.1] * 4, flags=(Flag.NO_BIAS, Flag.TIME_LIMIT))
    other = told([40.0, 5.0, 0.0, 15.0], [3.0] * 4, flags=(Flag.NO_BIAS, Flag.COUNTS_NOT_SURE))
    assert combine([one, other]).flags == (Flag.NO_BIAS, Flag.TIME_LIMIT)


def test_what_cannot_be_combined_is_refused_in_one_line():
    with pytest.raises(InvalidObservation, match="no restoration with counts"):
        combine([Restoration(torch.tensor([True, False]))])
    with pytest.raises(InvalidObservation, match="label sets have no common sum"):
        combine([Restoration(TRUE > 0, TRUE, multi_label=True, samples=40)])
    shorter = Restoration(torch.tensor([True, False]), torch.tensor([60, 0]))
    with pytest.raises(InvalidObservation, match="not of the same data"):
        combine([told([40.0, 5.0, 0.0, 15.0], [1.0] * 4), shorter])
    with pytest.raises(MissingKnowledge, match="no restoration has any"):
        combine([told([40.0, 5.0, 0.0, 15.0], None)])
