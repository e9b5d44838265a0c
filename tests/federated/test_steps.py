"""FedAvg's terms against local training written out by hand."""

import pytest
import torch

from labelleak import InvalidObservation, MissingKnowledge, observe_update, restore
from labelleak.federated.steps import Step, sizes_of
from synthetic import rng

CLASSES = 4


@pytest.mark.parametrize(
    ("step", "expected", "steps"),
    [
        # 64 samples in batches of 32, two epochs: all there is to say.
        (Step(batch_size=32, instances=64, local_epochs=2), {"batch_size": 32}, 4),
        # 100 samples in batches of 32: 3 full ones and one of 4.
        (Step(batch_size=32, instances=100), {"batch_size": 32, "instances": 100}, 4),
        (Step(batch_size=32, instances=100, local_epochs=2), {"instances": 100}, 8),
        # A batch larger than the data is all the data.
        (Step(batch_size=64, instances=20, local_epochs=3), {"batch_size": 20}, 3),
        # The batch size follows from the rest.
        (Step(local_steps=5, instances=100), {"batch_size": 20}, 5),
        (Step(local_steps=4, instances=101), {"batch_size": 26, "instances": 101}, 4),
        # drop_last: 3 of 4 batches.
        (Step(batch_size=32, local_steps=3, instances=100), {"instances": 100}, 3),
        (Step(batch_size=8, local_steps=6, local_epochs=2), {"batch_size": 8}, 6),
        (Step(local_steps=6), {"batch_size": None}, 6),
    ],
)
def test_what_an_observation_is_told(step, expected, steps):
    sizes = sizes_of(step)
    assert sizes.local_steps == steps
    assert sizes.knowledge["local_epochs"] == step.local_epochs
    assert expected.items() <= sizes.knowledge.items()
    assert ("instances" in sizes.knowledge) == bool(sizes.approximations)


def test_true_labels_tell_the_number_of_samples():
    assert sizes_of(Step(batch_size=32), 64).knowledge["batch_size"] == 32
    assert sizes_of(Step(batch_size=32), 64).local_steps == 2
    # Of those that took part, where not all did.
    sizes = sizes_of(Step(batch_size=32, local_steps=3, instances=100), 96)
    assert sizes.knowledge == {"batch_size": 32, "local_epochs": 1}
    with pytest.raises(InvalidObservation, match="95 true labels for 100 local samples"):
        sizes_of(Step(batch_size=32, local_steps=3, instances=100), 95)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 0},
        {"instances": -3},
        {"instances": 2.5},
        {"instances": float("nan")},
        {"local_epochs": True},
        {"local_steps": "3"},
        {"instances": 10**15},
        {"local_steps": 10**9},
    ],
)
def test_impossible_numbers_are_refused(fields):
    with pytest.raises(InvalidObservation):
        sizes_of(Step(**{"batch_size": 32, "instances": 100, **fields}))


def test_the_number_of_steps_is_not_guessed():
    for step in (Step(), Step(batch_size=32), Step(instances=100)):
        with pytest.raises(MissingKnowledge, match="number of local steps"):
            sizes_of(step)
    assert sizes_of(Step(), one_step=True).local_steps == 1


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
    sizes = sizes_of(Step(batch_size=32, instances=101))
    seen = observe_update(
        None, before, after, learning_rate=1e-3, local_steps=sizes.local_steps, **sizes.knowledge
    )
    for attack in ("ilrg", "pooled", "llbg"):
        counts = restore(seen, attack).counts
        assert counts is not None
        assert int(counts.sum()) == 101


def restored(samples, size, epochs, rate=1e-3):
    before, after, true = trained(samples, size, epochs, rate)
    sizes = sizes_of(Step(batch_size=size, instances=samples, local_epochs=epochs))
    seen = observe_update(
        None, before, after, learning_rate=rate, local_steps=sizes.local_steps, **sizes.knowledge
    )
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
