"""iLRG under every loss that it can read."""

import pytest
import torch
from torch.nn.functional import one_hot

from labelleak.attacks.published.ilrg import _System, ilrg
from labelleak.errors import MissingKnowledge
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import one_embedding, rng, separated, told, untrained

OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing, "weighted": weighted}
    for reduction in ("mean", "sum")
    for smoothing in (0.0, 0.1)
    for weighted in (False, True)
]


def loss(reduction, label_smoothing, weighted, classes):
    weight = 0.2 + torch.rand(classes, generator=rng(5), dtype=torch.float64) * 3
    return {
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "weight": weight if weighted else None,
    }


def knowledge(loss):
    return {
        "reduction": loss["reduction"],
        "label_smoothing": loss["label_smoothing"],
        "class_weights": loss["weight"],
    }


def test_the_closed_form_of_the_synthetic_batches_is_autograd():
    batch = untrained(7, 11, 24)
    torch.testing.assert_close(batch.gradient().weight, batch.autograd().weight)
    torch.testing.assert_close(batch.gradient().bias, batch.autograd().bias)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("classes", "size"), [(2, 5), (10, 24), (60, 100)])
def test_counts_are_exact_where_all_embeddings_are_the_same(options, classes, size):
    asked = loss(**options, classes=classes)
    batch = one_embedding(classes, 30, size, seed=classes)
    found = ilrg(batch.observe(batch.autograd(**asked), **knowledge(asked)))
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-8)
    assert torch.equal(found.counts, batch.counts)
    assert torch.equal(found.rounded, batch.counts)
    torch.testing.assert_close(found.class_probabilities.sum(1), torch.ones(classes).double())
    assert found.flags == ()


# With label smoothing a row is made of all samples, and its quotient is no class's embedding.
@pytest.mark.parametrize(
    "options",
    [{"reduction": r, "weighted": w} for r in ("mean", "sum") for w in (False, True)],
    ids=str,
)
@pytest.mark.parametrize(("classes", "size"), [(6, 20), (10, 24), (40, 100)])
def test_counts_are_exact_where_classes_differ_and_the_assumption_holds(options, classes, size):
    """The embedding and the prediction of each class are exact, too."""
    asked = loss(**options, label_smoothing=0.0, classes=classes)
    batch = separated(classes, 2 * classes, size)
    found = ilrg(batch.observe(batch.autograd(**asked), **knowledge(asked)))
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-7)
    assert torch.equal(found.counts, batch.counts)
    for index in batch.labels.unique():
        embedding = batch.embeddings[batch.labels == index][0]
        torch.testing.assert_close(found.class_embeddings[index], embedding)
        probabilities = (batch.weight @ embedding + batch.bias).softmax(0)
        torch.testing.assert_close(found.class_probabilities[index], probabilities)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_equations_hold_for_any_predictions(options, seed):
    """Given the true prediction of each class, the true counts solve all equations."""
    classes, size = 8, 30
    asked = loss(**options, classes=classes)
    labels = torch.randint(classes, (size,), generator=rng(seed))
    logits = 2 * torch.randn(classes, classes, generator=rng(seed + 1), dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    torch.nn.CrossEntropyLoss(**asked)(logits[labels] + bias, labels).backward()
    # On a summed loss the attack divides the gradient by the batch size first.
    gradient = bias.grad / (size if asked["reduction"] == "sum" else 1)
    observation = Observation(
        Head(torch.ones(classes, 1)),
        HeadGradient(torch.ones(classes, 1)),
        **told(batch_size=size, **knowledge(asked)),
    )
    counts = one_hot(labels, classes).sum(0).double()
    system = _System.of(observation, logits.softmax(1))
    unknowns = counts * system.weights
    if asked["reduction"] == "mean":
        unknowns *= size / unknowns.sum()
    torch.testing.assert_close(system.matrix @ unknowns, size * gradient)
    assert float(system.total_row @ unknowns) == pytest.approx(size)
    torch.testing.assert_close(
        system.matrix.sum(0), torch.zeros(classes, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_without_knowing_the_smoothing_counts_are_wrong(smoothing):
    """The exact counts above are due to the equations, not to an easy batch."""
    batch = one_embedding(10, 30, 200)
    gradient = batch.autograd(label_smoothing=smoothing)
    told, untold = (ilrg(batch.observe(gradient, label_smoothing=a)) for a in (smoothing, 0.0))
    assert torch.equal(told.rounded, batch.counts)
    assert not torch.equal(untold.rounded, batch.counts)


def test_without_knowing_the_class_weights_counts_are_wrong():
    batch = one_embedding(10, 30, 200)
    weights = torch.linspace(0.5, 3, 10, dtype=torch.float64)
    gradient = batch.autograd(weight=weights)
    assert torch.equal(ilrg(batch.observe(gradient, class_weights=weights)).rounded, batch.counts)
    assert not torch.equal(ilrg(batch.observe(gradient)).rounded, batch.counts)


def test_a_summed_loss_needs_the_batch_size():
    batch = untrained(5, 10, 4)
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        ilrg(batch.observe(batch_size=None, reduction="sum"))
