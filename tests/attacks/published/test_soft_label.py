import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelleak.attacks import restore
from labelleak.errors import MissingKnowledge
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import rng, told, untrained


def one_sample(target, seed=0, features=20, scale=1.0):
    """What the server sees of one sample with this target, and its embedding."""
    generator = rng(seed)
    classes = len(target)
    weight = scale * torch.randn(classes, features, generator=generator).double()
    bias = torch.randn(classes, generator=generator).double()
    embedding = torch.randn(features, generator=generator).double()
    error = torch.softmax(weight @ embedding + bias, 0) - torch.tensor(target).double()
    gradient = HeadGradient(error[:, None] * embedding)
    return Observation(Head(weight, bias), gradient, **told(batch_size=1)), embedding


def smoothed(classes, label, epsilon):
    target = [epsilon / classes] * classes
    target[label] += 1 - epsilon
    return target


def mixed(classes, first, second, share):
    target = [0.0] * classes
    target[first], target[second] = share, 1 - share
    return target


def check(observation, target, embedding, **options):
    found = restore(observation, "soft-label", **options)
    expected = torch.tensor(target).double()
    torch.testing.assert_close(found.raw, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.proportions, expected, rtol=0, atol=1e-5)
    assert found.counts.tolist() == (expected == expected.max()).long().tolist()
    torch.testing.assert_close(
        found.class_embeddings, embedding.expand(len(target), -1), rtol=1e-4, atol=1e-5
    )


# An example takes a tenth of a second, and twenty seeds and sizes show what a hundred do.
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(5, 30),
    epsilon=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_smoothed_labels(seed, classes, epsilon):
    target = smoothed(classes, seed % classes, epsilon)
    observation, embedding = one_sample(target, seed, scale=0.3)
    check(observation, target, embedding)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), classes=st.integers(6, 30), share=st.floats(0.55, 0.9))
def test_mixed_up_labels(seed, classes, share):
    target = mixed(classes, seed % classes, (seed + 1) % classes, share)
    observation, embedding = one_sample(target, seed, scale=0.3)
    check(observation, target, embedding, kind="mixup")


def test_the_grid_finds_the_length_that_a_fine_search_finds():
    """Compare with a fine grid of lengths."""
    target = smoothed(10, 3, 0.2)
    observation, embedding = one_sample(target, 5)
    length = float(restore(observation, "soft-label").class_embeddings[0].norm())
    assert length == pytest.approx(float(embedding.norm()), rel=1e-5)
    rows = observation.gradient.weight
    unit = embedding / embedding.norm()
    factors = rows @ unit
    least = []
    for candidate in torch.linspace(0.2, 30.0, 3000).double().tolist():
        logits = observation.head.weight @ unit * candidate + observation.head.bias
        left = torch.softmax(logits, 0) - factors / candidate
        smallest = left.sort().values[:-1]
        least.append((float(smallest.var(correction=0)) * candidate**2, candidate))
    assert min(least)[1] == pytest.approx(length, abs=0.02)


def test_a_head_without_a_bias():
    target = smoothed(8, 2, 0.1)
    generator = rng(3)
    weight, embedding = torch.randn(8, 12, generator=generator).double(), torch.ones(12).double()
    error = torch.softmax(weight @ embedding, 0) - torch.tensor(target).double()
    observation = Observation(
        Head(weight), HeadGradient(error[:, None] * embedding), **told(batch_size=1)
    )
    check(observation, target, embedding)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-6])
def test_a_head_that_tells_little_of_the_embedding_but_its_biases_differ(scale):
    target = smoothed(8, 2, 0.1)
    observation, embedding = one_sample(target, scale=scale)
    check(observation, target, embedding)


@pytest.mark.parametrize("rows", [0.0, 3.0])
def test_a_head_that_predicts_all_classes_alike_tells_no_length(rows):
    error = torch.full((6, 1), 1 / 6) - torch.eye(6)[:, 2:3]
    gradient = HeadGradient(error * torch.ones(5))
    seen = Observation(Head(torch.full((6, 5), rows)), gradient, **told(batch_size=1))
    with pytest.raises(MissingKnowledge, match="predicts all the same"):
        restore(seen, "soft-label")


@pytest.mark.parametrize(("classes", "kind"), [(2, "smoothing"), (3, "mixup")])
def test_too_few_classes_to_be_the_same(classes, kind):
    observation, _ = one_sample(smoothed(classes, 1, 0.1))
    with pytest.raises(MissingKnowledge, match=f"needs {classes + 1} classes"):
        restore(observation, "soft-label", kind=kind)


@pytest.mark.parametrize("knowledge", [{}, {"batch_size": 1, "local_steps": 2}])
def test_one_sample_it_must_be(knowledge):
    with pytest.raises(MissingKnowledge, match="a batch of one sample"):
        restore(untrained(5, 6, 4).observe(**knowledge), "soft-label")


def test_one_sample_through_several_epochs_is_still_one():
    observation = untrained(5, 6, 1).observe(local_steps=3, local_epochs=3)
    assert int(restore(observation, "soft-label").counts.sum()) == 1


def test_a_kind_that_there_is_not(unchecked):
    with pytest.raises(ValueError, match="kind 'cutmix': use 'smoothing' or 'mixup'"):
        restore(untrained(5, 6, 1).observe(), "soft-label", kind="cutmix")
