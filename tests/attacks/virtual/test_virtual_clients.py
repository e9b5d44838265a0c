"""Virtual clients on small networks and samples drawn here, trained by many recipes."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, Flag, LocalTraining, Loss, observe_update, restore, score
from labelleak.attacks.virtual import Simulations, attack
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.federated import train_locally
from synthetic import rng

CLASSES, INPUTS, SAMPLES = 4, 12, 80
MEANS = torch.randn(CLASSES, INPUTS, generator=rng(0))


def network(*, noisy=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        more = [nn.BatchNorm1d(16), nn.Dropout(0.1)] if noisy else []
        return nn.Sequential(nn.Linear(INPUTS, 16), *more, nn.ReLU(), nn.Linear(16, CLASSES))


def samples(labels, seed):
    return MEANS[labels] + torch.randn(len(labels), INPUTS, generator=rng(seed))


def auxiliary(each=40):
    labels = torch.arange(CLASSES).repeat_interleave(each)
    return Auxiliary(samples(labels, 2), labels)


def labels_of(seed):
    shares = torch.rand(CLASSES, generator=rng(seed)) ** 3
    return torch.multinomial(shares, SAMPLES, replacement=True, generator=rng(seed + 1))


FIVE_EPOCHS = LocalTraining(learning_rate=0.2, batch_size=20, epochs=5)
ONE_EPOCH = LocalTraining(learning_rate=0.2, batch_size=20)


def client(recipe=FIVE_EPOCHS, seed=10, *, noisy=False, loss="cross_entropy", shift=0.0):
    """A client's update, and what a server sees of it that has samples of its own."""
    labels, model = labels_of(seed), network(noisy=noisy)
    with torch.random.fork_rng(devices=[]):
        update = train_locally(
            model, samples(labels, seed + 2) + shift, labels, recipe, classes=CLASSES, loss=loss
        )
    return update, update.observe(model, auxiliary=auxiliary())


def accuracy(found, update):
    return score(found, update.true_counts).accuracy


def simulate(seen, **options):
    """The attack with few virtual clients and no clock."""
    return restore(seen, "virtual", **{"time_limit": 1e9, "trainings": 32} | options)


@cache
def usual():
    update, seen = client()
    return update, seen, simulate(seen, trainings=48)


def test_five_epochs_are_no_obstacle():
    update, seen, found = usual()
    assert accuracy(found, update) > 0.93
    assert accuracy(found, update) > accuracy(restore(seen, "likelihood"), update)
    assert Flag.SEVERAL_STEPS not in found.flags
    assert Flag.OUTSIDE_SIMULATIONS not in found.flags


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (LocalTraining("adam", 0.01, batch_size=20, epochs=2), {}),
        (LocalTraining("adamw", 0.01, batch_size=20, weight_decay=0.1), {}),
        (LocalTraining("rmsprop", 0.01, batch_size=20), {}),
        (LocalTraining("adagrad", 0.05, batch_size=20), {}),
        (LocalTraining("sgd", 0.05, batch_size=20, momentum=0.9, nesterov=True), {}),
        (LocalTraining("sgd", 0.1, batch_size=20, epochs=2, proximal=0.1), {}),
        (LocalTraining("sgd", 0.1, batch_size=20, epochs=2), {"noisy": True}),
        (LocalTraining("sgd", 0.1, batch_size=20), {"loss": Loss(label_smoothing=0.1)}),
        (LocalTraining("sgd", 0.1, batch_size=20, epochs=2), {"loss": Loss("focal")}),
        (
            LocalTraining("sgd", 0.1, batch_size=20),
            {"loss": Loss(class_weights=torch.tensor([1.0, 2.0, 1.0, 0.5]))},
        ),
    ],
    ids=str,
)
def test_any_recipe_that_can_be_simulated(recipe, options):
    update, seen = client(recipe, **options)
    found = simulate(seen)
    even = torch.full((CLASSES,), SAMPLES // CLASSES)
    guess = float(torch.minimum(even, update.true_counts).sum()) / SAMPLES
    assert accuracy(found, update) > guess + 0.1
    assert Flag.ADAPTIVE_OPTIMIZER not in found.flags


def test_intervals_hold_the_counts():
    """Of 8 clients with 4 counts each; at 95 %, fewer than 26 of 32 are improbable."""
    shared, held = Simulations(), 0
    for seed in range(100, 180, 10):
        update, seen = client(ONE_EPOCH, seed=seed)
        found = simulate(seen, shared=shared, trainings=12 if shared.pools else 40)
        low, high = found.intervals.unbind(dim=1)
        held += int(((low <= update.true_counts) & (update.true_counts <= high)).sum())
    assert held >= 26


def test_clients_of_a_round_share_virtual_clients():
    shared = Simulations()
    _, seen = client(ONE_EPOCH, seed=30)
    simulate(seen, shared=shared, trainings=40)
    known = len(shared.pools)
    other, seen = client(ONE_EPOCH, seed=40)
    found = simulate(seen, shared=shared, trainings=12)
    assert accuracy(found, other) > 0.85
    assert known <= len(shared.pools) <= known + 12
    _, seen = client(LocalTraining(learning_rate=0.1, batch_size=20), seed=30)
    simulate(seen, shared=shared, trainings=12)
    assert len(shared.pools) == 12, "those of another recipe are forgotten"


def test_a_client_to_whom_enough_are_lent_adds_fewer(monkeypatch):
    monkeypatch.setattr(attack, "_MOST_OF_OTHERS", 14)
    shared, trained = Simulations(), []
    _, seen = client(ONE_EPOCH, seed=30)
    simulate(seen, shared=shared, trainings=12)
    for lent in (shared.changes, shared.shares, shared.pools):
        lent.extend(lent * 4)
    _, seen = client(ONE_EPOCH, seed=40)
    simulate(seen, shared=shared, trainings=None, progress=lambda n, _: trained.append(n))
    assert trained[-1] == 14
    assert len(shared.pools) == 74


def test_data_of_another_kind_are_flagged():
    _, seen = client(ONE_EPOCH, shift=3.0)
    found = simulate(seen)
    assert Flag.OUTSIDE_SIMULATIONS in found.flags
    assert found.unreliable


def test_threads_do_not_change_the_answer(monkeypatch):
    _, seen = client(ONE_EPOCH)
    before = torch.get_num_threads()
    alone = simulate(seen, trainings=36)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 3)
        found = simulate(seen, trainings=36)
    torch.set_num_threads(before)
    torch.testing.assert_close(found.raw, alone.raw, rtol=0, atol=0.05)


def test_the_same_update_gives_the_same_answer():
    _, seen = client(ONE_EPOCH)
    one, again = simulate(seen, trainings=12), simulate(seen, trainings=12)
    assert torch.equal(again.counts, one.counts)
    torch.testing.assert_close(again.raw, one.raw)


@pytest.mark.parametrize(("seconds", "speaks"), [(60.0, True), (59.0, False)])
def test_auto_simulates_only_where_there_is_a_minute(seconds, speaks, monkeypatch):
    monkeypatch.setattr("labelleak.attacks.virtual.attack._MOST", 32)
    _, seen = client(ONE_EPOCH)
    found = restore(seen, time_limit=seconds)
    assert (found.attack == "virtual") is speaks


def test_auto_knows_no_less_than_a_guess(monkeypatch):
    """What virtual clients say of an even batch is drawn toward it as far as their errors ask."""
    monkeypatch.setattr("labelleak.attacks.virtual.attack._MOST", 32)
    labels, model = torch.arange(CLASSES).repeat(SAMPLES // CLASSES), network()
    drawn = samples(labels, 12)
    with torch.random.fork_rng(devices=[]):
        update = train_locally(model, drawn, labels, FIVE_EPOCHS, classes=CLASSES)
    seen = update.observe(model, auxiliary=auxiliary())
    found, plain = restore(seen, time_limit=60.0), simulate(seen)
    assert found.attack == "virtual"
    torch.testing.assert_close(found.raw, plain.raw)
    even = torch.full((CLASSES,), SAMPLES / CLASSES)
    assert bool(((found.counts - even).abs() <= (plain.counts - even).abs()).all())
    assert accuracy(found, update) > accuracy(plain, update)


def test_auto_leaves_uneven_counts_as_they_are(monkeypatch):
    monkeypatch.setattr("labelleak.attacks.virtual.attack._MOST", 32)
    _, seen = client()
    assert torch.equal(restore(seen, time_limit=60.0).counts, simulate(seen).counts)


def test_auto_does_not_believe_simulations_of_other_data(monkeypatch):
    monkeypatch.setattr("labelleak.attacks.virtual.attack._MOST", 32)
    _, seen = client(ONE_EPOCH, shift=3.0)
    assert restore(seen, time_limit=60.0).attack != "virtual"


def test_a_time_limit_ends_it_with_a_flag(monkeypatch):
    # One after the other, the clock is asked once for each.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    _, seen = client(ONE_EPOCH)
    clock = iter(range(10_000))
    trained = []
    found = restore(
        seen,
        "virtual",
        time_limit=20.0,
        now=lambda: float(next(clock)),
        progress=lambda number, _: trained.append(number),
    )
    assert Flag.TIME_LIMIT in found.flags
    assert trained == list(range(1, 21))


@pytest.mark.parametrize("after", [5, 20])
def test_an_interrupt_keeps_what_is_known(after):
    _, seen = client(ONE_EPOCH)

    def interrupt(number, _):
        if number == after:
            raise KeyboardInterrupt

    if after < 12:
        with pytest.raises(KeyboardInterrupt):
            restore(seen, "virtual", progress=interrupt)
        return
    found = restore(seen, "virtual", progress=interrupt)
    assert Flag.TIME_LIMIT in found.flags
    assert int(found.counts.sum()) == SAMPLES


def test_a_model_at_other_weights_is_refused():
    update, _ = client()
    other = network()
    with torch.no_grad():
        other[-1].weight.add_(1.0)
    with pytest.raises(MissingKnowledge, match="the model that the client started from"):
        restore(update.observe(other, auxiliary=auxiliary()), "virtual")


def test_one_auxiliary_sample_of_a_class_is_too_few():
    update, _ = client()
    with pytest.raises(MissingKnowledge, match="two auxiliary samples of every class"):
        restore(update.observe(network(), auxiliary=auxiliary(1)), "virtual")


class Broken(nn.Module):
    """Fails as soon as it is to learn."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(INPUTS, 16), nn.Linear(16, CLASSES)

    def forward(self, inputs):
        if torch.is_grad_enabled():
            raise RuntimeError("no training today\nor tomorrow")
        return self.fc(self.body(inputs))


def test_a_model_that_fails_gives_one_line():
    model = Broken()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = {name: value + 0.01 * torch.randn_like(value) for name, value in before.items()}
    recipe = LocalTraining(learning_rate=0.1, batch_size=20)
    seen = observe_update(
        model, before, after, training=recipe, instances=SAMPLES, auxiliary=auxiliary()
    )
    with pytest.raises(InvalidObservation, match=r"no training today$"):
        restore(seen, "virtual")


@pytest.mark.filterwarnings("ignore")
def test_a_rate_under_which_training_diverges_is_said():
    _, seen = client()
    wild = replace(seen, training=replace(seen.training, learning_rate=1e30))
    with pytest.raises(InvalidObservation, match="not finite after training"):
        restore(wild, "virtual")


@pytest.mark.filterwarnings("ignore")
def test_auto_goes_on_without_clients_that_cannot_be_trained():
    _, seen = client()
    wild = replace(seen, training=replace(seen.training, learning_rate=1e30))
    assert restore(wild, time_limit=60.0).attack != "virtual"


def test_one_logit_is_not_simulated():
    """Read as two classes, its weights move by other amounts, and its features at other rates."""
    logit = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in logit.state_dict().items()}
    after = {name: value + 0.01 for name, value in before.items()}
    labels = torch.arange(2).repeat(20)
    seen = observe_update(
        logit,
        before,
        after,
        loss="bce",
        training=FIVE_EPOCHS,
        instances=SAMPLES,
        auxiliary=Auxiliary(samples(labels, 2), labels),
    )
    with pytest.raises(MissingKnowledge, match="one logit is read as two classes"):
        restore(seen, "virtual")


def test_too_few_trainings_are_refused():
    with pytest.raises(ValueError, match="11 virtual clients: at least 12"):
        restore(client()[1], "virtual", trainings=11)
