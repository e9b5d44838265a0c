import pytest
import torch
from torch import nn

import labelleak
from labelleak.audit.ceiling import (
    ClassMoments,
    class_moments,
    fisher_information,
    moment_ceiling,
    sample_vectors,
)
from labelleak.errors import InvalidObservation, MissingKnowledge


def random_moments(classes=3, entries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, entries, dtype=torch.float64, generator=generator)
    roots = torch.randn(classes, entries, entries, dtype=torch.float64, generator=generator)
    return ClassMoments(means, roots @ roots.mT)


def test_the_information_is_the_curvature_of_the_divergence():
    """The Hessian of Kullback and Leibler's divergence at the true counts, by autograd."""
    moments, counts = random_moments(), torch.tensor([5.0, 2.0, 9.0], dtype=torch.float64)

    def normal(numbers):
        return torch.distributions.MultivariateNormal(
            numbers @ moments.means, torch.einsum("c,cij->ij", numbers, moments.covariances)
        )

    def divergence(numbers):
        return torch.distributions.kl_divergence(normal(counts), normal(numbers))

    curvature = torch.autograd.functional.hessian(divergence, counts)
    torch.testing.assert_close(fisher_information(moments, counts), curvature, rtol=1e-6, atol=1e-9)


def test_the_information_is_the_scatter_of_the_score():
    """Over draws of the sum, whose score is by autograd: the definition itself."""
    moments, counts = random_moments(2, 2, seed=1), torch.tensor([4.0, 3.0], dtype=torch.float64)
    numbers = counts.repeat(50_000, 1).requires_grad_()
    covariance = torch.einsum("bc,cij->bij", numbers, moments.covariances)
    law = torch.distributions.MultivariateNormal(numbers @ moments.means, covariance)
    torch.manual_seed(0)
    drawn = law.sample()
    (scores,) = torch.autograd.grad(law.log_prob(drawn).sum(), numbers)
    information = fisher_information(moments, counts)
    torch.testing.assert_close(scores.T @ scores / len(scores), information, rtol=0.05, atol=0.02)


def test_a_divisor_of_weights_takes_its_own_direction_out():
    """What only scales the sum, more of every class in the same shares, cannot be told."""
    moments, counts = random_moments(), torch.tensor([5.0, 2.0, 9.0], dtype=torch.float64)
    small = ClassMoments(moments.means, 1e-12 * moments.covariances)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    free, held = (
        float(counts @ fisher_information(small, counts, given) @ counts)
        for given in (None, weights)
    )
    assert held < 1e-6 * free


def test_moments_are_those_of_each_class():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    moments = class_moments(vectors, labels, 3)
    for label in (0, 1):
        own = vectors[labels == label]
        torch.testing.assert_close(moments.means[label], own.mean(dim=0))
        torch.testing.assert_close(moments.covariances[label], own.T.cov())
    # Of one sample nothing is known of the scatter: it is that within the others.
    within = sum((2.0 * moments.covariances[label] for label in (0, 1)), torch.zeros(2, 2))
    torch.testing.assert_close(moments.covariances[2], within / 4)


def test_vectors_add_up_to_the_gradient():
    """The bias gradient, and the weight's along the embeddings' main directions."""
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(6, 3).double(), torch.rand(9, 6).double(), torch.arange(9) % 3
    nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()
    residuals = torch.softmax(model(inputs), 1).detach() - nn.functional.one_hot(labels, 3)
    total = sample_vectors(residuals, inputs, 2).sum(dim=0).reshape(2, 3)
    torch.testing.assert_close(total[:, 0], model.bias.grad[:2])
    middle = inputs.mean(dim=0)
    axes = torch.linalg.svd(inputs - middle, full_matrices=False)[2][:2].T
    weight = model.weight.grad - torch.outer(model.bias.grad, middle)
    torch.testing.assert_close(total[:, 1:], (weight @ axes)[:2])


@pytest.fixture(scope="module")
def site():
    """A network, and samples that it tells apart well (0) or not at all (1)."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    inputs = 0.3 * torch.randn(400, 6)
    inputs[:, :4] += nn.functional.one_hot(labels, 4)
    model = nn.Linear(6, 4)
    return model.eval(), inputs, labels


def ceiling_at(site, confidence, size=80):
    model, inputs, labels = site
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 6) * confidence)
        model.bias.zero_()
    seen = labelleak.capture(model, inputs[:size], labels[:size])
    counts = torch.bincount(labels[:size], minlength=4) + torch.tensor([20, -10, -5, -5])
    return moment_ceiling(seen, counts, inputs, labels)


@pytest.mark.parametrize(("most", "entries"), [(9 * 9, 9), (9 * 9 - 1, 6), (3 * 3, 3)])
def test_with_many_classes_fewer_directions_are_looked_at(monkeypatch, site, most, entries):
    """As many as the memory for four covariances allows."""
    monkeypatch.setattr("labelleak.audit.ceiling._MOST_ENTRIES", 4 * most)
    assert ceiling_at(site, 1.0).entries == entries


def test_so_many_classes_that_no_covariance_can_be_kept_are_refused(monkeypatch, site):
    monkeypatch.setattr("labelleak.audit.ceiling._MOST_ENTRIES", 4 * 3 * 3 - 1)
    with pytest.raises(MissingKnowledge, match="4 classes are too many"):
        ceiling_at(site, 1.0)


def test_what_the_network_is_sure_of_is_hidden(site):
    reached = [ceiling_at(site, confidence).accuracy for confidence in (0.0, 5.0, 30.0)]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] == pytest.approx(1.0)
    assert 0.5 < reached[-1] < 0.95


def test_no_attack_of_moments_is_above_it(site):
    """Batches of the same shares, restored by the attack that is given the site's own moments."""
    model, inputs, labels = site
    ceiling = ceiling_at(site, 10.0)
    shares = torch.tensor([40, 10, 15, 15])
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(5):
        chosen = torch.cat(
            [
                torch.randperm(100, generator=generator)[:count] * 4 + label
                for label, count in enumerate(shares.tolist())
            ]
        )
        seen = labelleak.capture(model, inputs[chosen], labels[chosen])
        given = labelleak.Auxiliary(inputs, labels)
        seen = labelleak.Observation(
            seen.head, seen.gradient, training=seen.training, model=model, auxiliary=given
        )
        found.append(labelleak.score(labelleak.restore(seen, "likelihood"), shares).accuracy)
    error = float(torch.tensor(found).std()) / len(found) ** 0.5
    mean = sum(found) / len(found)
    assert mean < ceiling.accuracy + 2 * error
    assert mean > ceiling.accuracy - 0.15


def test_what_it_needs_is_told(site):
    model, inputs, labels = site
    seen = labelleak.capture(model, inputs[:8], labels[:8])
    counts = torch.tensor([2, 2, 2, 2])
    with pytest.raises(MissingKnowledge, match="a class of the batch has no sample"):
        moment_ceiling(seen, counts, inputs[labels > 0], labels[labels > 0])
    with pytest.raises(MissingKnowledge, match="8 samples are too few"):
        moment_ceiling(seen, counts, inputs[:8], labels[:8])
    steps = labelleak.LocalTraining(batch_size=8, steps=3)
    several = labelleak.Observation(seen.head, seen.gradient, training=steps, model=model)
    with pytest.raises(InvalidObservation, match="several local steps"):
        moment_ceiling(several, counts, inputs, labels)
