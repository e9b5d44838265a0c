"""FedAvg's terms against local training written out by hand."""

import pytest
import torch

from labelleak import InvalidObservation, observe_update, restore
from labelleak.federated.samples import (
    approximations,
    instances_of,
    unknown,
    with_counted_steps,
)
from labelleak.training import LocalTraining
from synthetic import rng, untrained

CLASSES = 4


@pytest.mark.parametrize(
    ("recipe", "instances", "words"),
    [
        ({"batch_size": 32, "epochs": 2}, 64, None),
        ({"batch_size": 32}, 100, "fewer than 32 samples and counts as much"),
        ({"batch_size": 32, "steps": 3}, 100, "96 of 100 samples took part"),
        ({"steps": 4}, 101, "fewer than 26 samples"),
        ({"steps": 6}, None, None),
    ],
)
def test_what_an_observation_does_not_say_as_it_was(recipe, instances, words):
    batch = untrained(4, 6, 8)
    seen = batch.observe(batch_size=None)
    seen = type(seen)(
        seen.head, seen.gradient, training=LocalTraining(**recipe), instances=instances
    )
    notes = approximations(seen)
    assert len(notes) == (words is not None)
    assert all(words in note for note in notes)


def test_true_labels_tell_the_number_of_samples():
    full = LocalTraining(batch_size=32, steps=2)
    assert instances_of(full, None) is None
    assert (
        instances_of(full, 64) == instances_of(full, None, 64) == instances_of(full, 64, 64) == 64
    )
    # Of those that took part, where not all did.
    some = LocalTraining(batch_size=32, steps=3)
    assert instances_of(some, 100, 96) == 96
    assert instances_of(some, 100, 100) == 100
    with pytest.raises(InvalidObservation, match="95 true labels for 100 local samples"):
        instances_of(some, 100, 95)


def trained(samples, size, epochs, rate=1e-3):
    """One linear layer on inputs that are all the same: the update tells the shares alone."""
    head = torch.nn.Linear(3, CLASSES).double()
    labels = torch.randint(CLASSES, (samples,), generator=rng(1))
    before = {name: value.detach().clone() for name, value in head.state_dict().items()}
    for epoch in range(epochs):
        for batch in torch.randperm(samples, generator=rng(epoch)).split(size):
            logits = head(torch.ones(len(batch), 3).double())
            loss = torch.nn.functional.cross_entropy(logits, labels[batch])
            gradients = torch.autograd.grad(loss, list(head.parameters()))
            with torch.no_grad():
                for value, gradient in zip(head.parameters(), gradients, strict=True):
                    value.sub_(gradient, alpha=rate)
    return before, head.state_dict(), torch.bincount(labels, minlength=CLASSES)


def test_every_attack_counts_the_instances():
    before, after, _ = trained(101, 32, 1)
    told = LocalTraining(learning_rate=1e-3, batch_size=32)
    seen = observe_update(None, before, after, training=told, instances=101)
    for attack in ("ilrg", "pooled", "llbg"):
        counts = restore(seen, attack).counts
        assert counts is not None
        assert int(counts.sum()) == 101


def restored(samples, size, epochs, rate=1e-3):
    before, after, true = trained(samples, size, epochs, rate)
    told = LocalTraining(learning_rate=rate, batch_size=size, epochs=epochs)
    seen = observe_update(None, before, after, training=told, instances=samples)
    return restore(seen, "ilrg").raw, true


def test_full_batches_give_the_counts_of_the_whole_data():
    raw, true = restored(96, 32, 2)
    torch.testing.assert_close(raw, true.double(), atol=0.1, rtol=0)


def test_a_short_last_batch_weighs_more_and_evens_out_over_epochs():
    raw, true = restored(100, 32, 1)
    once = float((raw - true).abs().max())
    assert float(raw.sum()) == pytest.approx(100, abs=0.1)
    raw, _ = restored(100, 32, 30, rate=1e-5)
    assert float((raw - true).abs().max()) < once / 3


@pytest.mark.parametrize(
    ("recipe", "instances", "counted", "steps", "epochs", "notes"),
    [
        # Nobody counted, or all agree.
        ({"steps": 3}, 100, None, 3, 1, 0),
        ({"batch_size": 32, "epochs": 2}, 100, 8, None, 2, 0),
        # Nobody told.
        ({}, None, 5, 5, 1, 0),
        ({"epochs": 5}, None, 10, 10, 5, 0),
        ({"batch_size": 32}, None, 5, 5, 1, 0),
        # The last batch is left out.
        ({"batch_size": 32, "epochs": 2}, 100, 6, 6, 2, 0),
        # Other epochs than told.
        ({"batch_size": 32}, 100, 20, 20, 5, 1),
        ({"batch_size": 32, "epochs": 2}, 100, 9, 9, 3, 1),
        # What cannot be explained, and what was told outright.
        ({"batch_size": 32, "epochs": 2}, 100, 7, None, 2, 1),
        ({"steps": 3}, 100, 4, 3, 1, 1),
        ({"learning_rate": (0.1, 0.2)}, 100, 4, None, 1, 1),
    ],
)
def test_steps_that_batchnorm_counted(recipe, instances, counted, steps, epochs, notes):
    found, said = with_counted_steps(LocalTraining(**recipe), instances, counted)
    assert (found.steps, found.epochs, len(said)) == (steps, epochs, notes)
    assert all(f"BatchNorm counted {counted}" in note for note in said)


def test_a_count_that_cannot_be():
    with pytest.raises(InvalidObservation, match="2 local epochs in 5 local steps"):
        with_counted_steps(LocalTraining(epochs=2), None, 5)


def test_what_of_a_recipe_is_not_known():
    assert len(unknown(LocalTraining(steps=2))) == 2
    # One step has no momentum yet.
    assert unknown(LocalTraining(steps=1)) == ("the optimizer is not known: it is taken for SGD",)
    assert unknown(LocalTraining("sgd", momentum=0.9)) == ()
