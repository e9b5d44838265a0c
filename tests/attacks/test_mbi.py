import math

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.mean_prediction.damped import moment
from labelleak.observation import HeadGradient
from synthetic import emitted_by_hand, one_embedding, rng, untrained

BATCH = untrained(10, 30, 40)


def observed(bias, size):
    """An observation with this bias gradient, which is all that the attack reads."""
    batch = untrained(len(bias), 5, size)
    bias = torch.tensor(bias, dtype=torch.float64)
    return batch.observe(HeadGradient(torch.outer(bias, torch.ones(5).double()), bias))


def test_the_impact_is_that_of_the_moment():
    bias = [-0.04, -0.01, 0.02, 0.03]
    seen = observed(bias, 8)
    by_hand = math.sqrt(8 * sum(value**2 for value in bias) / (1 - 1 / 4))
    assert moment(seen) == pytest.approx(by_hand)
    assert 0.05 < by_hand < 1.0
    expected = emitted_by_hand(bias, [-by_hand / 8] * 4, 8, [0.0] * 4)
    assert restore(seen, "mbi").counts.tolist() == expected


def test_the_impact_is_at_most_one():
    """The moment is 3.4, more than a network that knows nothing has."""
    bias = [-0.9, 0.3, 0.3, 0.3]
    seen = observed(bias, 8)
    assert moment(seen) > 3.0
    expected = emitted_by_hand(bias, [-1.0 / 8] * 4, 8, [0.0] * 4)
    assert restore(seen, "mbi").counts.tolist() == expected


def test_mistakes_that_spread_evenly_are_read_off_whatever_their_size():
    """``n_i / K = 1 / C - db_i / m`` holds exactly; the impact is estimated from random batches."""
    generator = rng(3)
    right = 0
    for _ in range(20):
        counts = torch.bincount(torch.randint(50, (60,), generator=generator), minlength=50)
        bias = 0.2 * (1 / 50 - counts.double() / 60)
        seen = observed(bias.tolist(), 60)
        found = restore(seen, "mbi").counts
        right += int(torch.minimum(found, counts).sum())
    # 0.996 to 1.0 for eight seeds.
    assert right > 0.97 * 20 * 60


def test_a_network_that_knows_nothing_is_as_llbg_has_it():
    seen = one_embedding(50, 30, 40).observe()
    assert moment(seen) > 1.05
    assert torch.equal(restore(seen, "mbi").counts, restore(seen, "llbg").counts)
