from copy import deepcopy

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, restore
from labelleak.federated import train_locally
from labelleak.loss import Loss
from labelleak.training import LocalTraining

CLASSES = 4


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES)).double()


def data(samples=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return torch.randn(samples, 6, generator=generator).double(), labels


def update(model, samples=24, **options):
    more = {name: options.pop(name) for name in ("loss", "seed") if name in options}
    training = LocalTraining(**{"learning_rate": 0.1} | options)
    return train_locally(model, *data(samples), training, classes=CLASSES, **more)


def gradients_at(model, inputs, labels):
    local = deepcopy(model)
    nn.CrossEntropyLoss()(local(inputs), labels).backward()
    return {name: value.grad for name, value in local.named_parameters()}


def test_one_epoch_of_one_batch_is_fedsgd(model):
    found = update(model)
    gradients = gradients_at(model, *data())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found.after[name], found.before[name] - 0.1 * gradient)
    told = found.training
    assert (told.steps, told.batch_size, told.epochs) == (1, 24, 1)
    assert torch.equal(found.true_counts, torch.bincount(data()[1], minlength=CLASSES))


def test_the_model_is_left_as_it_is(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = update(model, batch_size=8, epochs=2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, found.before[name])
        assert not torch.equal(value, found.after[name])


def by_hand(model, rates, batches, momentum, weight_decay, proximal):
    """SGD written out parameter by parameter."""
    local = deepcopy(model)
    start = [value.detach().clone() for value in local.parameters()]
    velocity = [torch.zeros_like(value) for value in start]
    for rate, (inputs, labels) in zip(rates, batches, strict=True):
        local.zero_grad()
        nn.CrossEntropyLoss()(local(inputs), labels).backward()
        with torch.no_grad():
            for place, value in enumerate(local.parameters()):
                step = value.grad + weight_decay * value + proximal * (value - start[place])
                velocity[place] = momentum * velocity[place] + step
                value.sub_(rate * velocity[place])
    return local.state_dict()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_steps_against_sgd_written_out(model, momentum, weight_decay, proximal):
    """Every batch is the whole data, so that no order matters."""
    rates = [0.1, 0.2, 0.05]
    options = {"momentum": momentum, "weight_decay": weight_decay, "proximal": proximal}
    found = update(model, epochs=3, learning_rate=rates, **options)
    expected = by_hand(model, rates, [data()] * 3, **options)
    for name, value in expected.items():
        torch.testing.assert_close(found.after[name], value)
    assert found.training.learning_rate == tuple(rates)


def test_every_epoch_takes_each_sample_once(model):
    """A head of zeros on one-hot inputs counts in its gradient who took part."""
    counter = nn.Linear(7, CLASSES).double()
    nn.init.zeros_(counter.weight)
    nn.init.zeros_(counter.bias)
    inputs, labels = torch.eye(7).double(), torch.arange(7) % CLASSES
    once, thrice = (
        train_locally(
            counter,
            inputs,
            labels,
            LocalTraining(learning_rate=1e-9, batch_size=3, epochs=epochs),
            classes=CLASSES,
        )
        for epochs in (1, 3)
    )
    moved = (once.after["weight"] - once.before["weight"]).abs().sum(0) > 0
    assert int(moved.sum()) == 6
    assert torch.equal(torch.bincount(labels[moved], minlength=CLASSES), once.true_counts)
    ratio = thrice.after["weight"].abs().sum(0)[moved] / once.after["weight"].abs().sum(0)[moved]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3.0), rtol=1e-6, atol=0)
    assert (once.training.steps, thrice.training.steps) == (2, 6)


def test_the_seed_decides_the_order(model):
    one, two, other = (update(model, batch_size=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.after["0.weight"], two.after["0.weight"])
    assert not torch.equal(one.after["0.weight"], other.after["0.weight"])


@pytest.mark.parametrize("epochs", [1, 5])
def test_what_the_server_sees(model, epochs):
    found = update(model, batch_size=8, epochs=epochs)
    auxiliary = Auxiliary(*data(12))
    observation = found.observe(model, auxiliary=auxiliary)
    assert observation.local_steps == 3 * epochs
    assert observation.num_instances == 24 == int(found.true_counts.sum())
    assert observation.auxiliary is auxiliary
    assert observation.training.step_sizes == pytest.approx((0.1,) * 3 * epochs)
    total = restore(observation, "llbg").counts.sum()
    assert int(total) == 24


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"proximal": 1.0},
        {"learning_rate": [1e-3, 5e-4, 2e-3]},
        {"momentum": 0.5, "weight_decay": 0.2, "proximal": 2.0},
    ],
    ids=str,
)
def test_the_gradient_is_put_to_scale_whatever_the_optimizer(model, options):
    """With steps this small all gradients are the first one, and the update is their mean."""
    found = update(model, epochs=3, **{"learning_rate": 1e-3} | options)
    observation = found.observe(model)
    expected = gradients_at(model, *data())
    for name, gradient in expected.items():
        error = (observation.gradients[name] - gradient).norm() / gradient.norm()
        assert float(error) < 0.01, name


def test_label_smoothing(model):
    found = update(model, loss=Loss(label_smoothing=0.3))
    local = deepcopy(model)
    inputs, labels = data()
    nn.CrossEntropyLoss(label_smoothing=0.3)(local(inputs), labels).backward()
    torch.testing.assert_close(
        found.after["2.bias"], found.before["2.bias"] - 0.1 * local[2].bias.grad
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, "batch size 25 for 24 samples: it must be 1 to 24"),
        ({"learning_rate": None}, "the learning rate is missing"),
        ({"learning_rate": [0.1, 0.1]}, "2 learning rates for 1 local steps"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        update(model, **options)
    assert "\n" not in str(refused.value)


def test_one_label_per_input(model):
    training = LocalTraining(learning_rate=0.1)
    with pytest.raises(ValueError, match="one label per input"):
        train_locally(model, data()[0], data()[1][:5], training, classes=CLASSES)
