"""Decaf, where updates are mixtures exactly, and against a search by brute force."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, LocalTraining, observe_update, restore, score
from labelleak.errors import MissingKnowledge
from labelleak.federated import train_locally
from synthetic import Batch, rng

CLASSES, INPUTS = 3, 6
PROTOTYPES = 3 * torch.rand(CLASSES, INPUTS, generator=rng(5), dtype=torch.float64) - 1
RECIPE = LocalTraining(learning_rate=0.3, momentum=0.9, batch_size=4, epochs=2)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        return model.double()


def client(labels, recipe=RECIPE):
    """All samples of a class are equal, and the server has one of each."""
    labels, model = torch.tensor(labels), network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        update = train_locally(model, PROTOTYPES[labels], labels, recipe, classes=CLASSES)
    return model, update, update.observe(model, auxiliary=Auxiliary(PROTOTYPES, torch.arange(3)))


@pytest.mark.parametrize(("seed", "classes", "size"), [(0, 2, 5), (1, 4, 1), (2, 8, 40), (3, 6, 9)])
def test_counts_are_exact_where_the_update_is_linear_in_them(seed, classes, size):
    """One step, and all samples of a class alike: the update is the mixture of the classes'.

    A feature that only one class has rises wherever that class is there.
    """
    generator = rng(seed)
    shared = torch.rand(classes, 10, generator=generator).double()
    rows = torch.cat([shared, torch.eye(classes).double()], dim=1)
    weight = torch.randn(classes, 10 + classes, generator=generator).double()
    labels = torch.randint(classes, (size,), generator=generator)
    batch = Batch(weight, torch.zeros(classes).double(), rows[labels], labels)
    seen = batch.observe(
        model=batch.model(),
        auxiliary=Auxiliary(rows, torch.arange(classes)),
        after=batch.after(0.1),
        learning_rates=(0.1,),
    )
    found = restore(seen, "decaf")
    assert torch.equal(found.counts, batch.counts)
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-6)


def base(label, steps):
    """What one class alone makes of the final layer, by torch's own optimizer."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    before = torch.cat([value.detach().flatten().clone() for value in model[-1].parameters()])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(PROTOTYPES[[label]]), torch.tensor([label]))
        loss.backward()
        optimizer.step()
    return before - torch.cat([value.detach().flatten() for value in model[-1].parameters()])


@pytest.mark.parametrize(
    "labels", [(0, 0, 0, 0, 1, 1, 2, 2), (0, 1, 1, 1, 1, 1, 1, 2), (0, 0, 1, 1, 2, 2, 2, 2)]
)
def test_shares_are_those_of_the_nearest_mixture(labels):
    """Of all mixtures in steps of a hundredth, of bases that are trained here."""
    model, update, seen = client(labels)
    bases = torch.stack([base(label, steps=4) for label in range(CLASSES)])
    changed = torch.cat(
        [
            (value.detach() - update.after[name]).flatten()
            for name, value in model.named_parameters()
            if name.startswith("2.")
        ]
    )
    pairs = [(a, b) for a, b in product(range(101), repeat=2) if a + b <= 100]
    shares = torch.tensor([(a, b, 100 - a - b) for a, b in pairs]).double() / 100
    distances = (shares @ bases - changed).norm(dim=1)
    found = restore(seen, "decaf").raw / len(labels)
    torch.testing.assert_close(found, shares[distances.argmin()], rtol=0, atol=0.02)
    assert float((found @ bases - changed).norm()) <= float(distances.min()) + 1e-9


def fallen(seen, classes):
    """The same client, but all that it sent of these classes is below what it was handed."""
    name = f"{seen.head.name}.weight"
    weight = seen.after[name].clone()
    weight[classes] = seen.head.weight[classes] - 0.01
    gradient = replace(seen.gradient, weight=seen.head.weight - weight)
    return replace(seen, gradient=gradient, after={**seen.after, name: weight})


def test_a_class_that_only_fell_is_absent():
    seen = client((0, 0, 1, 1, 1, 2, 2, 2))[2]
    assert restore(seen, "decaf").counts.tolist()[2] > 0
    found = restore(fallen(seen, [2]), "decaf")
    assert found.counts.tolist()[2] == 0
    assert int(found.counts.sum()) == 8


def test_where_all_classes_fell_signs_tell_nothing():
    """As where weights decay: some class is there."""
    seen = client((0, 0, 0, 0, 0, 1, 1, 2))[2]
    found = restore(fallen(seen, [0, 1, 2]), "decaf")
    assert int(found.counts.sum()) == 8
    assert bool(found.present.any())


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, LocalTraining("adam", learning_rate=0.01, batch_size=4, epochs=2)],
    ids=["momentum", "Adam"],
)
def test_local_training_is_no_obstacle(recipe):
    _, update, seen = client((0,) * 9 + (1,) * 5 + (2,) * 2, recipe)
    scored = score(restore(seen, "decaf"), update.true_counts)
    assert scored.accuracy > scored.guess


def test_what_is_missing_is_named():
    _, update, seen = client((0, 0, 1, 2))
    with pytest.raises(MissingKnowledge, match="no sample of 1 classes"):
        restore(replace(seen, auxiliary=Auxiliary(PROTOTYPES[:2], torch.arange(2))), "decaf")
    body = {name: value for name, value in update.after.items() if not name.startswith("2.")}
    with pytest.raises(MissingKnowledge, match="a final layer that the client trained"):
        restore(replace(seen, after=body), "decaf")


def test_one_logit_is_refused():
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = {name: value - 0.01 for name, value in before.items()}
    inputs = torch.rand(4, INPUTS, generator=rng())
    seen = observe_update(
        model, before, after, training=RECIPE, instances=8, loss="bce",
        auxiliary=Auxiliary(inputs, torch.tensor([0, 1, 0, 1])),
    )  # fmt: skip
    with pytest.raises(MissingKnowledge, match="two logits or more"):
        restore(seen, "decaf")
