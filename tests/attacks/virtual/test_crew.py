"""Virtual clients side by side come out as those that train one after the other."""

from concurrent.futures import CancelledError
from functools import cache
from threading import Event

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, LocalTraining, Loss
from labelleak.attacks.virtual import crew
from labelleak.attacks.virtual.crew import Crew, crew_of
from labelleak.attacks.virtual.drawing import Drawn, auxiliary_samples
from labelleak.attacks.virtual.simulation import recipe_of
from labelleak.errors import InvalidObservation
from labelleak.federated import train_locally
from synthetic import rng

CLASSES, SAMPLES = 3, 22
RECIPE = LocalTraining(learning_rate=0.1, batch_size=8, epochs=2)


@pytest.fixture
def two_threads(monkeypatch):
    """The crew takes torch to use two threads, which everything else does not."""
    before = torch.get_num_threads()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 2)
        yield
    torch.set_num_threads(before)


@cache
def data():
    labels = torch.arange(CLASSES).repeat(20)
    return torch.randn(len(labels), 1, 6, 6, generator=rng(0)) + labels[:, None, None, None], labels


def network(*more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), *more, nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
        )


def recipe(model=None, training=RECIPE, loss="cross_entropy"):
    model = network() if model is None else model
    inputs, labels = data()
    with torch.random.fork_rng(devices=[]):
        update = train_locally(
            model, inputs[:SAMPLES], labels[:SAMPLES], training, classes=CLASSES, loss=loss
        )
    return recipe_of(update.observe(model, auxiliary=Auxiliary(*data())), None)


def drawn(clients=3):
    samples = auxiliary_samples(Auxiliary(*data()), CLASSES)
    counts = torch.tensor([[10, 8, 4], [22, 0, 0], [1, 2, 19]])
    return [Drawn(counts[turn % 3], samples, turn % 2, turn) for turn in range(clients)]


def itself(after):
    return after


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)


def test_threads_change_nothing(two_threads):
    own = recipe(network(nn.BatchNorm2d(4)))
    expected = Crew(own, 1).train(drawn(2), itself)
    with crew_of(own, data()[0][:8]) as made:
        assert made.size == 2
        assert_alike(made.train(drawn(2), itself), expected)


@pytest.mark.parametrize(
    "training",
    [
        RECIPE,
        LocalTraining("adam", learning_rate=1e-2, batch_size=8),
        LocalTraining("adamw", learning_rate=1e-2, batch_size=8, weight_decay=0.1),
        LocalTraining("rmsprop", learning_rate=1e-3, batch_size=8, momentum=0.5),
        LocalTraining("adagrad", learning_rate=1e-2, batch_size=8),
        LocalTraining(learning_rate=0.1, batch_size=8, momentum=0.9, nesterov=True, proximal=0.3),
    ],
)
def test_one_pass_of_all_is_the_passes_of_each(training):
    own = recipe(training=training)
    together = Crew(own, 3)
    assert_alike(together.train(drawn(), itself), Crew(own, 1).train(drawn(), itself))
    assert together.size == 3


@pytest.mark.parametrize(
    "loss",
    [
        Loss(label_smoothing=0.1, class_weights=torch.tensor([1.0, 2.0, 0.5])),
        Loss("focal", gamma=2.0),
    ],
)
def test_one_pass_of_all_has_the_loss_of_each(loss):
    own = recipe(loss=loss)
    together = Crew(own, 3)
    assert_alike(together.train(drawn(), itself), Crew(own, 1).train(drawn(), itself))
    assert together.size == 3


def test_one_pass_of_all_keeps_statistics_and_frozen_layers_of_each():
    model = network(nn.BatchNorm2d(4))
    model[0].requires_grad_(False)
    own = recipe(model)
    together = Crew(own, 3)
    found = together.train(drawn(), itself)
    assert_alike(found, Crew(own, 1).train(drawn(), itself))
    assert together.size == 3
    assert not torch.equal(found[0]["1.running_mean"], found[1]["1.running_mean"])


class Undecided(nn.Module):
    """Asks for a number, which a batch of weights does not have."""

    def forward(self, values):
        return values if float(values.detach().sum()) > 1e9 else 1.1 * values


@pytest.mark.parametrize("more", [nn.Dropout(0.5), Undecided()])
def test_random_numbers_of_the_process_are_taken_one_by_one(two_threads, more):
    own = recipe(network(more))
    with crew_of(own, data()[0][:8]) as made:
        assert made.size == (1 if isinstance(more, nn.Dropout) else 2)


def test_a_large_model_trains_alone(two_threads, monkeypatch):
    monkeypatch.setattr(crew, "_LARGE", 100)
    with crew_of(recipe(), data()[0][:8]) as made:
        assert made.size == 1


class Twice(nn.Module):
    """Two layers with the same weights, which have two names in a state dict."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, values):
        return self.second(torch.relu(self.first(values)))


class Remembers(nn.Module):
    """Keeps what went through it."""

    def forward(self, values):
        self.last = values
        return values


def test_one_pass_of_all_with_weights_that_layers_share():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        shared = nn.Sequential(Twice(), Remembers(), nn.Linear(64, CLASSES))
    own = recipe(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), shared))
    together = Crew(own, 3)
    assert_alike(together.train(drawn(), itself), Crew(own, 1).train(drawn(), itself))
    assert together.size == 3
    assert not hasattr(own.model[3][1], "last")


class Replaces(nn.Module):
    """Puts another tensor in its buffer's place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, values):
        self.passes = self.passes + 1.0
        return values


class Asserts(nn.Module):
    def forward(self, values):
        assert not torch._C._functorch.is_batchedtensor(values)
        return values


@pytest.mark.parametrize("more", [Undecided, Replaces, Asserts])
def test_what_cannot_be_one_pass_trains_one_by_one(more):
    own = recipe(network(more()))
    together = Crew(own, 3)
    assert_alike(together.train(drawn(), itself), Crew(own, 1).train(drawn(), itself))
    assert together.size == 1


@pytest.mark.parametrize("error", [InvalidObservation, KeyboardInterrupt])
def test_an_error_ends_the_others_and_leaves_the_global_state(two_threads, error):
    """One fails at once; the other would take 300 steps."""
    steps = []

    class Counts(nn.Module):
        def forward(self, values):
            steps.append(len(values))
            return values

    def fails(counts, pool, generator):
        raise error

    training = LocalTraining(learning_rate=1e-4, batch_size=8, epochs=100)
    own = recipe(network(Counts()), training)
    first, second = drawn(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    steps.clear()
    with pytest.raises(error), crew_of(own, data()[0][:8]) as made:
        made.train([first._replace(samples=fails), second], itself)
    assert len(steps) < 290
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_stopped_has_no_answer():
    stop = Event()
    stop.set()
    with pytest.raises(CancelledError):
        recipe().trained_beside(drawn(1)[0], stop)
