"""The mean prediction over several steps, against training by hand."""

import torch

from labelleak.attacks import restore
from labelleak.attacks.mean_prediction.pooled import pooled_prediction
from synthetic import one_embedding, untrained

STEPS, RATE = 8, 0.2


def trained_by_hand(batch):
    """A head that takes steps on the same batch: the mean gradient, the mean prediction."""
    weight, bias = batch.weight.clone(), batch.bias.clone()
    targets = torch.nn.functional.one_hot(batch.labels, len(bias)).double()
    predictions = []
    for _ in range(STEPS):
        probabilities = torch.softmax(batch.embeddings @ weight.T + bias, dim=1)
        predictions.append(probabilities.mean(dim=0))
        residuals = (probabilities - targets) / len(targets)
        weight -= RATE * residuals.T @ batch.embeddings
        bias -= RATE * residuals.sum(dim=0)
    return weight, bias, torch.stack(predictions).mean(dim=0)


def observed(batch):
    weight, bias, mean = trained_by_hand(batch)
    reach = STEPS * RATE
    gradient = batch.gradient()
    moved = type(gradient)((batch.weight - weight) / reach, (batch.bias - bias) / reach)
    seen = batch.observe(
        moved, local_steps=STEPS, local_epochs=STEPS, learning_rates=(RATE,) * STEPS
    )
    return seen, mean


def test_the_way_of_the_head_is_followed():
    batch = one_embedding(10, 30, 40)
    seen, mean = observed(batch)
    start = torch.softmax(batch.embeddings @ batch.weight.T + batch.bias, dim=1).mean(dim=0)
    found = pooled_prediction(seen).probabilities
    assert float((found - mean).norm()) < 0.4 * float((start - mean).norm())


def test_errors_cover_what_is_not_seen():
    inside = []
    for seed in range(20):
        batch = untrained(10, 30, 40, seed, spread=0.3)
        seen, _ = observed(batch)
        low, high = restore(seen, "pooled").intervals.T
        inside.append((low <= batch.counts) & (batch.counts <= high))
    assert float(torch.cat(inside).double().mean()) > 0.9


def test_without_a_recipe_no_errors_are_told():
    seen = untrained(10, 30, 40).observe(local_steps=4)
    assert restore(seen, "pooled").standard_errors is None
