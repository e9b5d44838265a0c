"""Tables 1, 3 and 4 on cases small enough to work out by hand, and against autograd."""

import math

import pytest
import torch
from torch import nn

from labelleak.lab.measures import (
    ClassSums,
    approximations,
    baseline,
    cossim,
    coverage,
    measure,
    soteria_embedding,
)
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.restoration import Restoration
from synthetic import told

# Three classes, two features, a batch of three: twice class 0, once class 1.
EMBEDDINGS = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.2, 0.4, 0.4]])
LABELS = torch.tensor([0, 0, 1])


@pytest.fixture
def means():
    sums = ClassSums(3, 2)
    sums.add(EMBEDDINGS, PROBABILITIES.log(), LABELS)
    return sums.means()


def restoration(embeddings, probabilities=None):
    probabilities = torch.eye(3).double() if probabilities is None else probabilities
    present = torch.tensor([True, True, False])
    return Restoration(
        attack="ilrg",
        present=present,
        class_embeddings=torch.tensor(embeddings).double(),
        class_probabilities=probabilities,
    )


def observation(weight, bias, head=None):
    zeros = torch.zeros(3, 2)
    return Observation(
        head=head or Head(zeros, torch.zeros(3)),
        gradient=HeadGradient(torch.tensor(weight), torch.tensor(bias)),
        **told(batch_size=3),
    )


def close(a, b):
    torch.testing.assert_close(a, torch.tensor(b).double(), atol=1e-7, rtol=1e-6)


def test_means_by_hand(means):
    assert means.counts.tolist() == [2, 1, 0]
    close(means.embeddings, [[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    close(means.probabilities, [[0.3, 0.425, 0.275], [0.2, 0.4, 0.4], [0.0, 0.0, 0.0]])
    # Of class 0: (0.5 - 1) * 1 and (0.1 - 1) * 3, halved; of class 1: (0.4 - 1) * 2.
    close(means.weight_gradient, [[-1.6, 0.0], [0.0, -1.2], [0.0, 0.0]])
    close(means.bias_gradient, [-0.7, -0.6, 0.0])


def test_means_do_not_depend_on_the_pieces(means):
    sums = ClassSums(3, 2)
    for row in range(3):
        part = slice(row, row + 1)
        sums.add(EMBEDDINGS[part], PROBABILITIES[part].log(), LABELS[part])
    for name in ("counts", "embeddings", "probabilities", "weight_gradient", "bias_gradient"):
        torch.testing.assert_close(getattr(sums.means(), name), getattr(means, name))


def test_gradients_are_those_of_each_class_alone():
    torch.manual_seed(0)
    head, embeddings = nn.Linear(7, 5).double(), torch.rand(40, 7).double()
    labels = torch.randint(4, (40,))  # class 4 is absent
    sums = ClassSums(5, 7)
    sums.add(embeddings, head(embeddings).detach(), labels)
    found = sums.means()
    for label in range(4):
        rows = labels == label
        loss = nn.functional.cross_entropy(head(embeddings[rows]), labels[rows])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        torch.testing.assert_close(found.weight_gradient[label], weight[label])
        torch.testing.assert_close(found.bias_gradient[label], bias[label])
    assert not found.weight_gradient[4].any()


def test_confident_predictions_do_not_cancel():
    sums = ClassSums(2, 1)
    sums.add(torch.ones(1, 1), torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
    assert float(sums.means().bias_gradient[0]) == pytest.approx(-math.exp(-40))


def test_cossim_by_hand(means):
    found = restoration(
        [[1.0, 1.0], [0.0, 5.0], [9.0, 9.0]],
        torch.tensor([[0.3, 0.425, 0.275], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).double(),
    )
    measured = cossim(found, means)
    assert measured["embedding_cossim"] == pytest.approx((math.sqrt(0.5) + 1) / 2)
    # (0, 1, 0) and (0.2, 0.4, 0.4): 0.4 / 0.6.
    assert measured["probability_cossim"] == pytest.approx((1 + 2 / 3) / 2)


def test_approximations_by_hand(means):
    seen = observation([[-1.0, 0.5], [0.0, -0.4], [1.0, -0.1]], [-0.5, -0.1, 0.6])
    found = approximations(restoration([[2.0, 1.0], [0.0, 12.0], [0.0, 0.0]]), seen, means)
    # h e - g: class 0 (-1.4, 0) - (-1.6, 0), class 1 (0, -1.2) - (0, -1.2).
    assert found["a1_mse"] == pytest.approx(0.2**2 / 2 / 2)
    assert found["a1_mre"] == pytest.approx(0.2 / 1.6 / 2 / 2)
    # n/K g - dW: (-16/15 + 1, -0.5) and (0, -0.4 + 0.4); an entry of dW that is 0 counts as 0.
    assert found["a2_weight_mse"] == pytest.approx(((1 / 15) ** 2 + 0.25) / 2 / 2)
    assert found["a2_weight_mre"] == pytest.approx((1 / 15 + 1) / 2 / 2)
    # n/K h - db: -7/15 + 1/2 and -1/5 + 1/10.
    assert found["a2_bias_mse"] == pytest.approx(((1 / 30) ** 2 + 0.1**2) / 2)
    assert found["a2_bias_mre"] == pytest.approx(((1 / 30) / 0.5 + 1) / 2)
    # A head of zeros predicts 1/3 everywhere.
    first = [1 / 3 - 0.3, 1 / 3 - 0.425, 1 / 3 - 0.275]
    second = [1 / 3 - 0.2, 1 / 3 - 0.4, 1 / 3 - 0.4]
    assert found["a3_mse"] == pytest.approx(sum(x * x for x in first + second) / 6)
    truth = [0.3, 0.425, 0.275, 0.2, 0.4, 0.4]
    assert found["a3_mre"] == pytest.approx(
        sum(abs(x) / p for x, p in zip(first + second, truth, strict=True)) / 6
    )
    # Class 1 is off by 10 in one of two entries: 50, of which 10 count.
    assert found["embedding_mse"] == pytest.approx((0.5 + 10) / 2)
    assert found["embedding_cossim"] == pytest.approx((2 / math.sqrt(5) + 1) / 2)


def test_soteria_by_hand(means):
    seen = observation([[-1.0, 0.0], [0.0, -4.0], [1.0, 4.0]], [-0.5, -0.1, 0.6])
    assert soteria_embedding(seen, means) == {
        "soteria_embedding_mse": pytest.approx((9 / 2 + 36 / 2) / 2),
        "soteria_embedding_cossim": pytest.approx(-1.0),
    }


def test_approximations_1_and_3_are_exact_where_all_samples_of_a_class_are_alike():
    torch.manual_seed(0)
    head, embeddings = nn.Linear(7, 5).double(), torch.rand(5, 7).double()
    labels = torch.arange(5).repeat_interleave(torch.tensor([3, 1, 2, 0, 4]))
    sums = ClassSums(5, 7)
    logits = head(embeddings).detach()
    sums.add(embeddings[labels], logits[labels], labels)
    loss = nn.functional.cross_entropy(head(embeddings[labels]), labels)
    weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
    seen = Observation(
        Head(head.weight.detach(), head.bias.detach()),
        HeadGradient(weight, bias),
        **told(batch_size=10),
    )
    found = Restoration(
        present=torch.bincount(labels, minlength=5) > 0,
        class_embeddings=embeddings,
        class_probabilities=logits.softmax(dim=1),
    )
    errors = measure(["approximations", "cossim"], found, seen, sums.means())
    for name in ("a1_mse", "a1_mre", "a3_mse", "a3_mre", "embedding_mse"):
        assert errors[name] == pytest.approx(0.0, abs=1e-12)
    assert errors["embedding_cossim"] == errors["probability_cossim"] == pytest.approx(1.0)
    assert errors["a2_weight_mre"] > 0.1


def test_measures_by_name(means):
    seen = observation([[-1.0, 0.0], [0.0, -4.0], [1.0, 4.0]], [-0.5, -0.1, 0.6])
    found = restoration([[2.0, 1.0], [0.0, 12.0], [0.0, 0.0]])
    assert measure([], found, seen, means) == {}
    assert measure(["soteria_embedding", "cossim"], found, seen, means) == {
        **soteria_embedding(seen, means),
        **cossim(found, means),
    }


def test_what_is_missing_is_named(means):
    bare = Restoration(torch.tensor([True, True, False]), attack="idlg")
    with pytest.raises(ValueError, match="'idlg' restores no class embeddings"):
        cossim(bare, means)
    seen = Observation(
        Head(torch.zeros(3, 2)), HeadGradient(torch.ones(3, 2)), **told(batch_size=3)
    )
    with pytest.raises(ValueError, match="this head has none"):
        approximations(restoration([[1.0, 0.0]] * 3), seen, means)


def test_coverage_is_the_share_of_the_counts_inside_their_intervals():
    found = Restoration(
        present=torch.tensor([True, True, False, False]),
        counts=torch.tensor([2, 1, 0, 0]),
        raw=torch.tensor([2.1, 0.9, -0.5, 0.5]).double(),
        standard_errors=torch.tensor([0.1, 0.1, 0.1, 0.1]).double(),
    )
    # 1.96 standard errors either side hold 2 and 1, and neither of the zeros.
    assert coverage(found, torch.tensor([2, 1, 0, 0])) == 0.5
    assert coverage(found, torch.tensor([3, 0, 0, 0])) == 0.0
    assert coverage(restoration(EMBEDDINGS.tolist()), torch.tensor([2, 1, 0])) is None


def test_baselines_are_what_their_names_say():
    true = torch.tensor([5, 0, 0, 1, 1])
    generator = torch.Generator().manual_seed(0)
    assert baseline("uniform", true, generator).tolist() == [2, 2, 1, 1, 1]
    assert baseline("absent", true, generator).tolist() == [0] * 5
    dealt = [tuple(baseline("shuffled", true, generator).tolist()) for _ in range(20)]
    assert all(sorted(counts) == [0, 0, 1, 1, 5] for counts in dealt)
    assert len(set(dealt)) > 5
    with pytest.raises(ValueError, match="no baseline 'prior'"):
        baseline("prior", true, generator)
