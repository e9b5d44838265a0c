from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from labelleak.attacks import restore
from labelleak.attacks.published.rlu import expected_mistakes, least_squares_on_simplex
from labelleak.errors import MissingKnowledge
from labelleak.observation import Auxiliary, HeadGradient
from synthetic import Batch, losses, rng, untrained


def prototypes(classes, features, size, seed, scale=1.0):
    """All samples of a class have the same embedding, so auxiliary data gives exact predictions."""
    generator = rng(seed)
    rows = torch.rand(classes, features, generator=generator).double()
    weight = scale * torch.randn(classes, features, generator=generator).double()
    labels = torch.randint(classes, (size,), generator=generator)
    batch = Batch(weight, torch.zeros(classes).double(), rows[labels], labels)
    return batch, Auxiliary(rows.clone(), torch.arange(classes))


def observed(batch, auxiliary, gradient=None, **knowledge):
    return batch.observe(gradient, model=batch.model(), auxiliary=auxiliary, **knowledge)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), size=st.integers(1, 60))
def test_counts_are_exact_where_the_predictions_are_known(seed, classes, size):
    batch, auxiliary = prototypes(classes, 12, size, seed)
    found = restore(observed(batch, auxiliary), "rlu")
    assert torch.equal(found.counts, batch.counts)
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-4)


LOSSES = losses(6)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_every_loss_is_taken_into_account(loss):
    batch, auxiliary = prototypes(6, 12, 24, 0)
    observation = batch.observe_under(loss, model=batch.model(), auxiliary=auxiliary)
    assert torch.equal(restore(observation, "rlu").counts, batch.counts)


@pytest.mark.parametrize("loss", LOSSES[:4], ids=str)
def test_a_mistake_is_the_derivative_by_the_logits(loss):
    logits = torch.randn(6, 6, generator=rng()).double()
    observation = untrained(6, 3, 4).observe(
        label_smoothing=loss["label_smoothing"], class_weights=loss["weight"]
    )
    mistakes = expected_mistakes(observation, logits.softmax(1))
    for label in range(6):
        one = logits[label : label + 1].clone().requires_grad_()
        torch.nn.CrossEntropyLoss(**{**loss, "reduction": "sum"})(
            one, torch.tensor([label])
        ).backward()
        torch.testing.assert_close(mistakes[label], one.grad[0])


@pytest.mark.parametrize("seed", range(8))
def test_least_squares_on_the_simplex_against_a_general_solver(seed):
    generator = rng(seed)
    matrix = torch.randn(7, 5, generator=generator).double()
    right = torch.randn(7, generator=generator).double()
    found = least_squares_on_simplex(matrix, right)
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(1.0)
    general = minimize(
        lambda x: float((matrix @ torch.from_numpy(x) - right).square().sum()),
        [0.2] * 5,
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    torch.testing.assert_close(found, torch.from_numpy(general.x), rtol=0, atol=1e-4)


def test_the_shares_solve_the_equations_of_the_paper():
    """A z = -db with A_jj = sum of S[j, n] over n != j, and A_jn = -S[n, j], of a sure network."""
    batch, _ = prototypes(5, 12, 24, 3, scale=2.0)
    inputs = torch.rand(60, 12, generator=rng(4)).double()
    labels = torch.arange(60) % 5
    probabilities = torch.softmax(inputs @ batch.weight.T, dim=1)
    mistakes = torch.zeros(5, 5).double()
    for one in range(5):
        mean = probabilities[labels == one].mean(dim=0)
        for other in range(5):
            if other != one:
                mistakes[one, one] += mean[other]
                mistakes[other, one] -= mean[other]
    found = restore(observed(batch, Auxiliary(inputs, labels)), "rlu")
    right = -batch.gradient().bias
    general = minimize(
        lambda shares: 1e2 * float(((mistakes @ torch.from_numpy(shares) - right) ** 2).sum()),
        torch.full((5,), 0.2).numpy(),
        bounds=[(0.0, 1.0)] * 5,
        constraints=[{"type": "eq", "fun": lambda shares: shares.sum() - 1.0}],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    torch.testing.assert_close(found.raw, 24 * torch.from_numpy(general.x), rtol=0, atol=1e-2)
    assert float(found.raw.max()) > 6


def test_least_squares_on_the_simplex_by_hand():
    """The corner nearest to (2, 0), and the middle of the edge."""
    matrix = torch.eye(2, dtype=torch.float64)
    assert least_squares_on_simplex(matrix, torch.tensor([2.0, 0.0]).double()).tolist() == [1, 0]
    half = least_squares_on_simplex(matrix, torch.tensor([3.0, 3.0]).double())
    torch.testing.assert_close(half, torch.tensor([0.5, 0.5]).double())


def simulated(batch, auxiliary, rate, steps):
    """Several steps as the attack models them, one step and one sample at a time.

    Returns the mean bias gradient and the change of the logits, for embeddings of length one.
    """
    logits = batch.embeddings @ batch.weight.T
    drift, mean = torch.zeros(len(batch.weight)).double(), torch.zeros(len(batch.weight)).double()
    for _ in range(steps):
        gradient = torch.zeros_like(drift)
        for row, label in zip(logits, batch.labels.tolist(), strict=True):
            gradient += torch.softmax(row + drift, 0) / len(logits)
            gradient[label] -= 1 / len(logits)
        mean += gradient / steps
        drift -= rate * 2.0 * gradient
    return mean, drift


def test_several_steps_are_simulated():
    """A step moves the logits by twice its gradient: embeddings of length one, and the bias."""
    batch, auxiliary = prototypes(6, 12, 24, 0)
    mean, drift = simulated(batch, auxiliary, 0.4, 10)
    # A weight gradient whose pooled embedding has length one.
    direction = torch.zeros(12).double()
    direction[0] = 1.0
    gradient = HeadGradient(mean[:, None] * direction, mean)
    knowledge = {"batch_size": 24, "local_steps": 10, "local_epochs": 10}
    observation = observed(batch, auxiliary, gradient, learning_rates=(0.4,) * 10, **knowledge)
    static = restore(observed(batch, auxiliary, gradient), "rlu")
    found = restore(observation, "rlu")
    error, before = ((x.raw - batch.counts).abs().sum() for x in (found, static))
    assert float(error) < 0.7 * float(before)
    # The client's model shows how the logits moved, which improves the shares.
    after = {"fc.weight": batch.weight, "fc.bias": drift}
    searched = restore(replace(observation, after=after), "rlu", searches=30)
    # Thirty batches give 0.34 to 0.61 for the ratio above, and 0.02 to 0.39 for this one.
    assert float((searched.raw - batch.counts).abs().sum()) < 0.6 * float(error)


def test_without_searches_the_client_s_model_plays_no_part():
    batch, auxiliary = prototypes(6, 12, 24, 0)
    knowledge = {"batch_size": 12, "local_steps": 2, "learning_rates": (0.1, 0.1)}
    observation = observed(batch, auxiliary, **knowledge)
    found = restore(observation, "rlu")
    again = restore(replace(observation, after=batch.after(0.1)), "rlu", searches=0)
    torch.testing.assert_close(found.raw, again.raw)


def test_what_is_missing_is_named():
    batch, auxiliary = prototypes(6, 12, 24, 0)
    with pytest.raises(MissingKnowledge, match="several steps needs the learning rates"):
        restore(observed(batch, auxiliary, batch_size=12, local_steps=2), "rlu")
    with pytest.raises(MissingKnowledge, match="no sample of 1 classes"):
        restore(observed(batch, Auxiliary(auxiliary.inputs[:5], auxiliary.labels[:5])), "rlu")
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        restore(observed(batch, auxiliary, reduction="sum", batch_size=None), "rlu")


def test_without_a_batch_size_there_are_shares():
    batch, auxiliary = prototypes(6, 12, 24, 0)
    found = restore(observed(batch, auxiliary, batch_size=None), "rlu")
    assert found.counts is None
    torch.testing.assert_close(found.proportions * 24, batch.counts.double(), rtol=0, atol=1e-4)


def test_a_negative_number_of_searches_is_refused():
    batch, auxiliary = prototypes(6, 12, 24, 0)
    with pytest.raises(ValueError, match="-1 searches"):
        restore(observed(batch, auxiliary), "rlu", searches=-1)
