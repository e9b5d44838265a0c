"""Exact restoration: what it finds, how it says it, and what it refuses."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from exact_batches import DENSE, FEW_CLASSES, FLOAT, assert_all_found, restored, trained

from labelleak import defenses
from labelleak.attacks import restore
from labelleak.attacks.exact import restore_exactly
from labelleak.attacks.exact.head_factors import factorize
from labelleak.errors import MissingKnowledge
from labelleak.restoration import Flag
from synthetic import Batch, rng, untrained


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("classes", "features", "size", "relu"),
    [(30, 40, 1, False), (30, 40, 8, False), (60, 50, 20, False), (10, 60, 8, True)],
)
def test_counts_and_embeddings_are_exact_and_certified(classes, features, size, relu, seed):
    made = trained(classes, features, size, seed, relu=relu)
    found = restored(made.observe())
    assert found.certified
    assert_all_found(found, made)
    assert found.flags == ()
    assert float(found.proportions.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("relu", [False, True])
def test_samples_are_ordered_by_label_and_then_by_the_sum_of_their_embedding(relu):
    made = trained(30, 60, 12, relu=relu)
    made.labels[:] = torch.tensor([7, 2, 7, 2, 29, 7, 0, 2, 11, 7, 0, 2])
    sums = made.embeddings.sum(dim=1)
    order = sorted(range(12), key=lambda k: (int(made.labels[k]), float(sums[k])))
    for seed in range(3):
        found = restored(made.observe(), seed=seed)
        assert torch.equal(found.embedding_labels, made.labels[order])
        assert torch.allclose(found.embeddings, made.embeddings[order], atol=1e-6)


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_single_precision_is_enough(made):
    found = restored(made.observe(dtype=torch.float32))
    assert found.certified
    assert_all_found(found, made, tolerance=1e-2)


def test_the_batch_size_is_read_from_the_gradient():
    found = restored(DENSE.observe(batch_size=None))
    assert_all_found(found, DENSE)
    assert torch.equal(found.certain, found.counts)
    # Every sample twice would give the same.
    assert not found.certified
    assert found.flags == (Flag.UNKNOWN_BATCH_SIZE,)


@pytest.mark.parametrize("relu", [False, True])
def test_a_bias_is_not_needed(relu):
    made = trained(30, 40, 8, relu=relu)
    without = replace(made, bias=torch.zeros_like(made.bias))
    found = restored(without.observe(bias=False))
    assert_all_found(found, without)
    assert found.certified
    assert found.flags == (Flag.NO_BIAS,)


def test_a_bias_without_its_gradient_will_do():
    gradient = replace(DENSE.gradient(), bias=None)
    found = restored(DENSE.observe(gradient))
    assert_all_found(found, DENSE)
    assert found.certified


def test_a_sample_may_be_in_the_batch_twice():
    made = trained(30, 40, 6)
    made.embeddings[1], made.labels[1] = made.embeddings[0], made.labels[0]
    found = restored(made.observe())
    assert found.certified
    assert torch.equal(found.counts, made.counts)
    assert len(found.embeddings) == 5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_other_losses(reduction, weighted):
    weights = torch.linspace(0.5, 2.0, 30, dtype=FLOAT) if weighted else None
    gradient = DENSE.autograd(reduction=reduction, weight=weights)
    found = restored(DENSE.observe(gradient, reduction=reduction, class_weights=weights))
    assert found.certified
    assert_all_found(found, DENSE)


def test_a_batch_of_one_image_alone_is_not_certified_for_the_smallest_number_of_them():
    made = trained(10, 20, 3)
    made = Batch(made.weight, made.bias, made.embeddings[:1].expand(3, -1), made.labels * 0 + 4)
    assert not restored(made.observe(batch_size=None)).certified
    told = restored(made.observe())
    assert told.certified
    assert torch.equal(told.counts, made.counts)


def test_a_sum_of_unknown_size_is_never_certified():
    """Nothing in it says how many samples leave no trace."""
    gradient = DENSE.autograd(reduction="sum")
    found = restored(DENSE.observe(gradient, reduction="sum", batch_size=None))
    assert torch.equal(found.counts, DENSE.counts)
    assert not found.certified


def test_an_invisible_sample_is_counted_and_prevents_the_certificate():
    made = trained(30, 40, 8)
    # Hundreds above all other logits: what it leaves is far below the gradient's precision.
    made.embeddings[3] = 400.0 * made.weight[5] / made.weight[5].norm()
    made.labels[3] = 5
    found = restored(made.observe(dtype=torch.float32))
    assert not found.certified
    assert found.invisible == 1
    assert Flag.INVISIBLE_SAMPLES in found.flags
    assert int(found.counts.sum()) == 8
    others = made.counts - torch.nn.functional.one_hot(torch.tensor(5), 30)
    assert torch.equal(found.certain, others)


def test_more_than_the_batch_size_explains_is_refused_at_once():
    """The rank shows more samples than were said to be there, or noise."""
    with pytest.raises(MissingKnowledge, match="without noise, and the right batch size: 7"):
        restored(DENSE.observe(batch_size=7))
    seen = DENSE.observe(dtype=torch.float32)
    size = float(seen.gradient.weight.square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=1e-2 * size, generator=rng())
    with pytest.raises(MissingKnowledge, match="without noise"):
        restored(defenses.defend(seen, noise))


def test_a_repeated_sample_is_told_from_rounding_that_looks_like_one_more():
    """The client's own errors reach above the noise of the rest, as one more rank."""
    made = trained(60, 80, 8)
    made.embeddings[1], made.labels[1] = made.embeddings[0], made.labels[0]
    exact_gradient = made.gradient()
    generator = rng(3)
    slip = torch.randn(60, 1, generator=generator, dtype=FLOAT)
    slip = 3e-8 * (slip - slip.mean()) @ torch.randn(1, 81, generator=generator, dtype=FLOAT)
    gradient = replace(
        exact_gradient,
        weight=exact_gradient.weight + slip[:, :-1],
        bias=exact_gradient.bias + slip[:, -1],
        rounding=1e-7,
    )
    seen = made.observe(gradient)
    assert factorize(seen, 8, rng()).rank == 8
    found = restored(seen)
    assert torch.equal(found.counts, made.counts)
    assert len(found.embeddings) == 7
    assert Flag.INCOMPLETE not in found.flags


def test_the_time_limit_holds_and_is_reported():
    readings = iter(range(1000))
    seen = trained(100, 80, 50).observe(dtype=torch.float32)
    found = restore(seen, "exact", time_limit=3.0, now=lambda: float(next(readings)))
    # Every reading takes a second, and hardly any comes once the time is over.
    assert next(readings) < 10
    assert Flag.TIME_LIMIT in found.flags
    assert Flag.INCOMPLETE in found.flags
    assert not found.certified
    assert int(found.counts.sum()) == 50


def test_the_same_seed_gives_the_same_result():
    first, second = (restored(DENSE.observe(), seed=3) for _ in range(2))
    assert torch.equal(first.embeddings, second.embeddings)


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [({"local_steps": 2}, "one local step"), ({"label_smoothing": 0.1}, "without smoothing")],
)
def test_what_it_cannot_do_is_refused(knowledge, message):
    with pytest.raises(MissingKnowledge, match=message):
        restored(DENSE.observe(**knowledge))


def test_a_batch_as_large_as_the_classes_is_refused():
    with pytest.raises(MissingKnowledge, match="at most 9 samples"):
        restored(trained(10, 60, 12).observe())


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_positive(limit):
    with pytest.raises(ValueError, match="positive number of seconds"):
        restore_exactly(DENSE.observe(), time_limit=limit)


def test_untrained_heads_with_embeddings_that_are_nearly_the_same():
    made = untrained(20, 40, 6, spread=0.1)
    found = restored(made.observe())
    assert found.certified
    assert_all_found(found, made, tolerance=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_client_that_computes_in_single_precision_is_certified(seed):
    """Autograd's q carry the rounding of 1 - p, which is large beside a confident sample's."""
    made = trained(10, 60, 6, seed, relu=True)
    # Two samples are predicted with 1 - p of about 1e-4.
    made.labels[:2] = (made.embeddings[:2] @ made.weight.T + made.bias).argmax(dim=1)
    for k in range(2):
        made.embeddings[k] *= 12.0 / (made.embeddings[k] @ made.weight[made.labels[k]])
    single = Batch(*(t.float() for t in (made.weight, made.bias, made.embeddings)), made.labels)
    found = restored(single.observe(single.autograd(), dtype=torch.float32))
    assert found.certified
    assert torch.equal(found.counts, made.counts)


@pytest.mark.parametrize("size", [1, 3])
def test_a_weight_gradient_of_zeros_counts_as_not_sent(size):
    """Embeddings that are zero everywhere leave the same gradient as a weight that was not sent."""
    made = trained(10, 2, size)
    made = Batch(made.weight, made.bias, torch.zeros_like(made.embeddings), made.labels * 0)
    with pytest.raises(MissingKnowledge, match="gradient of the final layer's weight"):
        restored(made.observe())


def test_a_low_rank_says_nothing_of_more_samples_than_the_head_has_room_for():
    """Embeddings that are nearly alike: at the gradient's precision a few stand for all."""
    made = untrained(30, 20, 300, spread=1e-8)
    with pytest.raises(MissingKnowledge, match="samples here"):
        restored(made.observe())
