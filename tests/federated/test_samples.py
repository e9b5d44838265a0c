"""FedAvg's terms against local training written out by hand."""

import pytest
import torch

from labelleak import InvalidObservation, observe_update, restore
from labelleak.federated.samples import approximations, instances_of
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
