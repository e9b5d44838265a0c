"""Virtual clients on made-up classes, against clients that train on classes of another kind."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, Flag, LocalTraining, Loss, restore, score
from labelleak.attacks.virtual import MadeUpClients, without_data
from labelleak.errors import MissingKnowledge
from labelleak.federated import train_locally
from synthetic import rng

CLASSES, SIDE, SAMPLES = 4, 8, 80
RECIPE = LocalTraining(learning_rate=0.1, batch_size=20, epochs=5)


def network(classes=CLASSES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(),
            nn.Linear(16, classes),
        )  # fmt: skip


def bars(labels, seed):
    """A bright bar in a place that the class decides, on noise: no sum of smooth patterns."""
    images = 0.5 * torch.rand(len(labels), 1, SIDE, SIDE, generator=rng(seed))
    places = 2 * labels[:, None, None, None] == torch.arange(SIDE)[:, None].expand(SIDE, SIDE)
    return images + places.float()


def client(recipe=RECIPE, seed=3):
    shares = torch.rand(CLASSES, generator=rng(seed)) ** 3
    labels = torch.multinomial(shares, SAMPLES, replacement=True, generator=rng(seed + 1))
    model = network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        update = train_locally(model, bars(labels, seed + 2), labels, recipe, classes=CLASSES)
    return update, update.observe(model, input_shape=(1, SIDE, SIDE))


def accuracy(found, update):
    return score(found, update.true_counts).accuracy


def simulate(seen, **options):
    return restore(seen, "synthetic", **{"time_limit": 1e9, "trainings": 96} | options)


@cache
def usual():
    update, seen = client()
    shared = MadeUpClients()
    return update, seen, simulate(seen, shared=shared), shared


def test_five_epochs_need_no_samples():
    update, seen, found, _ = usual()
    assert accuracy(found, update) > 0.85
    assert accuracy(found, update) > accuracy(restore(seen, "pooled"), update) + 0.1
    assert int(found.counts.sum()) == SAMPLES
    assert Flag.SEVERAL_STEPS not in found.flags


def test_errors_are_those_that_there_are():
    update, _, found, _ = usual()
    off = (found.raw - update.true_counts) / found.standard_errors
    assert float(off.square().mean().sqrt()) < 2.5
    assert float(found.standard_errors.max()) < SAMPLES / 4


def test_adam_has_no_control_variate():
    update, seen = client(LocalTraining("adam", 0.005, batch_size=20, epochs=2))
    found = simulate(seen, trainings=48)
    even = torch.full((CLASSES,), SAMPLES // CLASSES)
    guess = float(torch.minimum(even, update.true_counts).sum()) / SAMPLES
    assert accuracy(found, update) > guess + 0.1


def test_clients_of_a_round_share_virtual_clients():
    shared = deepcopy(usual()[3])
    other, seen = client(seed=50)
    found = simulate(seen, shared=shared, trainings=24)
    assert len(shared.rows) == 120
    assert accuracy(found, other) > 0.8
    _, seen = client(replace(RECIPE, epochs=4))
    simulate(seen, shared=shared, trainings=24)
    assert len(shared.rows) == 24, "those of another recipe are forgotten"


def test_the_same_update_gives_the_same_answer():
    seen = usual()[1]
    one, again = (simulate(seen, trainings=24) for _ in range(2))
    assert torch.equal(one.counts, again.counts)


def test_a_time_limit_ends_it_with_a_flag(monkeypatch):
    # One after the other, the clock is asked once for each.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    seen = usual()[1]
    clock, trained = iter(range(10_000)), []
    found = restore(
        seen,
        "synthetic",
        time_limit=30.0,
        now=lambda: float(next(clock)),
        progress=lambda number, _: trained.append(number),
    )
    assert Flag.TIME_LIMIT in found.flags
    assert trained == list(range(1, 31))


@pytest.mark.parametrize("after", [5, 30])
def test_an_interrupt_keeps_what_is_known(after):
    seen = usual()[1]

    def interrupt(number, _):
        if number == after:
            raise KeyboardInterrupt

    if after < 24:
        with pytest.raises(KeyboardInterrupt):
            restore(seen, "synthetic", progress=interrupt)
        return
    assert Flag.TIME_LIMIT in restore(seen, "synthetic", progress=interrupt).flags


def test_an_interrupt_while_the_networks_learn_keeps_what_is_known(monkeypatch):
    seen, shared = usual()[1], deepcopy(usual()[3])
    learned, calls = without_data.read_rows, []

    def interrupted_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return learned(*args)

    def end(*_):
        raise KeyboardInterrupt

    shared.natures, shared.rows = shared.natures[:95], shared.rows[:95]
    shared.counts = shared.counts[:95]
    monkeypatch.setattr(without_data, "read_rows", interrupted_once)
    found = simulate(seen, shared=shared, trainings=24, progress=end)
    assert len(calls) == 2
    assert bool(torch.isfinite(found.standard_errors).all())


def test_auto_simulates_where_there_is_a_minute(monkeypatch):
    monkeypatch.setattr("labelleak.attacks.virtual.without_data._MOST", 48)
    _, seen = client(LocalTraining(learning_rate=0.1, batch_size=20))
    assert restore(seen, time_limit=60.0).attack == "synthetic"
    assert restore(seen, time_limit=59.0).attack != "synthetic"


def test_a_temperature_is_not_trained_with():
    """The head alone would be trained at a rate of its own."""
    _, seen = client(LocalTraining(learning_rate=0.1, batch_size=20))
    seen = replace(seen, loss=Loss(temperature=3.0))
    with pytest.raises(MissingKnowledge, match="knows no temperature"):
        restore(seen, "synthetic")
    assert restore(seen, time_limit=60.0).attack != "synthetic"


def test_inputs_whose_shape_nobody_knows():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 5 * 6, CLASSES)

        def forward(self, images):
            return self.fc(torch.relu(self.body(images)).flatten(1))

    labels = torch.arange(20) % CLASSES
    model = Odd()
    update = train_locally(model, torch.rand(20, 1, 7, 8), labels, RECIPE, classes=CLASSES)
    with pytest.raises(
        MissingKnowledge, match=r"'synthetic' needs the shape of the model's inputs"
    ):
        simulate(update.observe(model))


def test_auxiliary_inputs_tell_the_shape():
    update, _ = client()
    held = Auxiliary(torch.zeros(CLASSES, 1, SIDE, SIDE), torch.arange(CLASSES))
    seen = update.observe(network(), auxiliary=held)
    assert simulate(seen, trainings=24).attack == "synthetic"


def test_too_many_classes_are_refused(monkeypatch):
    monkeypatch.setattr(without_data, "_MOST_CLASSES", CLASSES - 1)
    with pytest.raises(MissingKnowledge, match="too long for 4 classes"):
        simulate(usual()[1])


def test_too_few_trainings_are_refused():
    with pytest.raises(ValueError, match="23 virtual clients: at least 24"):
        restore(usual()[1], "synthetic", trainings=23)
