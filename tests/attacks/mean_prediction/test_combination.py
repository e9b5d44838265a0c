"""The combination of two estimates, against scalar formulas where all errors have one shape."""

import pytest
import torch

from labelleak.attacks.mean_prediction.combination import combined, summary
from labelleak.attacks.mean_prediction.mean_logits import MeanLogits
from synthetic import rng, untrained

CLASSES, INPUTS, SIZE = 6, 200, 16
OBSERVATION = untrained(CLASSES, 9, SIZE).observe()
NOTHING = torch.zeros(CLASSES, 1, dtype=torch.float64)


def estimates(apart, error):
    """Logits of inputs, and pooled ones: so far apart, in units of an input, with such an error."""
    generator = rng(3)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = 0.3 * randn(INPUTS, CLASSES)
    seen = summary(inputs, NOTHING, NOTHING, INPUTS)
    logits = seen.logits + apart * 0.3 * randn(CLASSES)
    logits = logits - logits.mean()
    scatter = error * 0.3 * randn(CLASSES, 128)
    pooled = MeanLogits(
        logits=logits,
        replicates=logits[:, None] + scatter,
        samples=0.3 * randn(CLASSES, 128),
        bias_gradient=torch.zeros(CLASSES, dtype=torch.float64),
        noise=0.0,
        embedding=torch.zeros(9, dtype=torch.float64),
        doubt=0.0,
        signal=1.0,
        has_learned=False,
        expected=1.0,
    )
    return seen, pooled


def test_estimates_that_agree_are_weighted_by_their_variances():
    seen, pooled = estimates(apart=0.05, error=0.5)
    found = combined(OBSERVATION, pooled, seen)
    scatter = pooled.replicates - pooled.logits[:, None]
    scatter = scatter - scatter.mean(dim=0)
    centering = torch.eye(CLASSES).double() - 1.0 / CLASSES
    power = float((centering @ seen.covariance @ centering).trace())
    own = 1.0 / INPUTS + 1.0 / SIZE + 0.01
    share = own / (own + float(scatter.square().sum(dim=0).mean()) / power)
    assert 0.1 < share < 0.9
    logits = seen.log_probabilities + share * (pooled.logits - (seen.logits - seen.logits.mean()))
    torch.testing.assert_close(found.probabilities, torch.softmax(logits, dim=0))


@pytest.mark.parametrize("apart", [10.0, 100.0])
def test_inputs_that_are_contradicted_are_outvoted(apart):
    seen, pooled = estimates(apart=apart, error=0.05)
    found = combined(OBSERVATION, pooled, seen)
    own = torch.softmax(pooled.logits, dim=0)
    away = torch.softmax(seen.logits, dim=0)
    assert float((found.probabilities - own).norm()) < 0.1 * float((away - own).norm())


def test_replicates_scatter_about_the_estimate():
    seen, pooled = estimates(apart=0.05, error=0.5)
    found = combined(OBSERVATION, pooled, seen)
    mean = found.replicates.mean(dim=1)
    errors = found.replicates.std(dim=1) / found.replicates.shape[1] ** 0.5
    assert float(((mean - found.probabilities) / errors).abs().max()) < 5.0
