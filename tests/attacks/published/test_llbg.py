import pytest
import torch

from labelleak.attacks import restore
from labelleak.observation import HeadGradient
from synthetic import emitted_by_hand, one_embedding, untrained


def entries(batch):
    return batch.gradient().bias.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_they_are_the_published_algorithms(seed):
    batch = untrained(12, 20, 30, seed, spread=0.5)
    beta = entries(batch)
    auxiliary = batch.auxiliary()
    predictions = (auxiliary.inputs @ batch.weight.T + batch.bias).softmax(1)
    confidence = [
        float(predictions[auxiliary.labels == label, label].mean()) for label in range(12)
    ]
    impacts = {
        "llbg": [-1 / 30] * 12,
        "llbg-aux": [-(1 - value) / 30 for value in confidence],
        "ebi": [sum(value for value in beta if value < 0) / 30] * 12,
    }
    observation = batch.observe(model=batch.model(), auxiliary=auxiliary)
    for attack, impact in impacts.items():
        found = restore(observation, attack)
        assert found.counts.tolist() == emitted_by_hand(beta, impact, 30, [0.0] * 12), attack


def test_cases_by_hand():
    """db = (-0.5, -0.25, 0.25, 0.5) and K = 4: the impact is 1/4 in LLBG and 3/16 in EBI."""
    bias = torch.tensor([-0.5, -0.25, 0.25, 0.5], dtype=torch.float64)
    observation = untrained(4, 1, 4).observe(HeadGradient(torch.ones(4, 1).double(), bias))
    # LLBG emits 0 and 1, which leaves -0.25 and 0; then 0, which leaves 0 and 0: the lower class.
    assert restore(observation, "llbg").counts.tolist() == [3, 1, 0, 0]
    # EBI emits 0 and 1, which leaves -5/16 and -1/16; then 0, which leaves -2/16 and -1/16.
    assert restore(observation, "ebi").counts.tolist() == [3, 1, 0, 0]


def test_llbg_is_exact_where_predictions_are_uniform():
    """With a head of zeros an entry is 1/C - n/K."""
    batch = one_embedding(20, 10, 64)
    batch.weight.zero_()
    batch.bias.zero_()
    assert torch.equal(restore(batch.observe(), "llbg").counts, batch.counts)


def test_the_weight_plays_no_part():
    batch = untrained(8, 10, 20)
    gradient = batch.gradient()
    other = HeadGradient(gradient.weight * 3 + 1, gradient.bias)
    for attack in ("llbg", "ebi"):
        found = restore(batch.observe(), attack)
        assert torch.equal(restore(batch.observe(other), attack).counts, found.counts)
