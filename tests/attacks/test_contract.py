"""What every attack and auto must do: one table of checks for all of them.

Checks of equal counts need a batch that is far from ties: `test_the_batch_is_far_from_a_tie`.
"""

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from labelleak.attacks import likelihood, list_attacks, restore
from labelleak.attacks.registry import Gives, Need
from labelleak.errors import MissingKnowledge
from labelleak.loss import Loss
from labelleak.observation import Auxiliary, Observation
from labelleak.restoration import Restoration
from labelleak.training import LocalTraining
from labelleak.updates import observe
from synthetic import rng

NAMES = [*list_attacks(), "auto"]
every_attack = pytest.mark.parametrize("name", NAMES)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CLASSES, INPUTS, FEATURES = 12, 10, 30
RATE = 0.1


def network(*, noisy=False):
    """Two layers, float64; a noisy one has BatchNorm and dropout in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = OrderedDict(body=nn.Linear(INPUTS, FEATURES))
        if noisy:
            layers |= {"norm": nn.BatchNorm1d(FEATURES), "dropout": nn.Dropout(0.2)}
        layers |= {"relu": nn.ReLU(), "fc": nn.Linear(FEATURES, CLASSES)}
        model = nn.Sequential(layers).double().train(noisy)
        with torch.no_grad():
            # Nearly even predictions, as most of the published attacks assume.
            for value in model.fc.parameters():
                value.mul_(0.3)
        return model


def inputs(size, seed):
    """Inputs that differ little, with embeddings as large as those of standard normal inputs."""
    common = torch.randn(INPUTS, generator=rng(10), dtype=torch.float64)
    own = torch.randn(size, INPUTS, generator=rng(seed), dtype=torch.float64)
    return 0.9 * common + 0.4 * own


@dataclass(frozen=True)
class Client:
    """One client, and the server's auxiliary samples."""

    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    auxiliary: Auxiliary | None

    @property
    def counts(self):
        return torch.bincount(self.labels, minlength=CLASSES)

    def gradients(self, reduction="mean"):
        loss = nn.CrossEntropyLoss(reduction=reduction)(self.model(self.inputs), self.labels)
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    def observe(self, *, told_size=True, **knowledge) -> Observation:
        """What a server sees that knows everything, the batch size only if it is told."""
        gradients = self.gradients(knowledge.get("loss", Loss()).reduction)
        after = {
            name: value.detach() - RATE * gradients[name]
            for name, value in self.model.named_parameters()
        }
        size = len(self.labels) if told_size else None
        seen = observe(
            self.model,
            gradients,
            training=LocalTraining(learning_rate=RATE, batch_size=size, steps=1),
            input_shape=(INPUTS,),
            auxiliary=self.auxiliary,
            **knowledge,
        )
        return replace(seen, after=self.model.state_dict() | after)

    def renamed(self, order):
        """The same client with class ``order[i]`` named i."""
        place = order.argsort()
        model = network()
        with torch.no_grad():
            for own, other in zip(model.fc.parameters(), self.model.fc.parameters(), strict=True):
                own.copy_(other[order])
        auxiliary = self.auxiliary
        if auxiliary is not None:
            auxiliary = Auxiliary(auxiliary.inputs, place[auxiliary.labels])
        return Client(model, self.inputs, place[self.labels], auxiliary)


def client(name, labels=(1, 1, 4, 6, 6), **options):
    """A client with these labels, or with the first of them for an attack on one sample.

    There is no auxiliary data for auto, which would run the slow `likelihood` on it.
    """
    if Need.ONE_SAMPLE in needs_of(name):
        labels = labels[:1]
    known = torch.arange(CLASSES).repeat(3)
    auxiliary = None if name == "auto" else Auxiliary(inputs(len(known), 2), known)
    return Client(network(**options), inputs(len(labels), 4), torch.tensor(labels), auxiliary)


def needs_of(name):
    return () if name == "auto" else list_attacks()[name].needs


# What is checked here needs neither many virtual clients nor many entries of a covariance.
FEWER = {
    "synthetic": {"trainings": 24},
    "virtual": {"trainings": 12},
    "likelihood": {"directions": 0},
}


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    """Nor the very maximum of the likelihood."""
    monkeypatch.setattr(likelihood, "_ITERATIONS", 20)


def run(name, seen):
    """Run an attack without a time limit that a slow machine could reach."""
    return restore(seen, name, time_limit=1e9, **FEWER.get(name, {}))


@cache
def usual(name):
    """What an attack restores from its usual client."""
    return run(name, client(name).observe())


def tensors_of(found: Restoration):
    """The tensors of a restoration by field."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def assert_same(found, expected, tolerance=1e-6):
    """Equal set, counts and flags, and nearly equal real numbers."""
    assert torch.equal(found.present, expected.present)
    assert (found.counts is None) == (expected.counts is None)
    if expected.counts is not None:
        assert torch.equal(found.counts, expected.counts)
    assert found.flags == expected.flags
    for one, other in ((found.raw, expected.raw), (found.proportions, expected.proportions)):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@every_attack
def test_an_attack_signs_and_yields_what_it_says(name):
    found = usual(name)
    gives = list_attacks()[found.attack].gives
    assert name in (found.attack, "auto")
    assert found.present.shape == (CLASSES,)
    if Gives.COUNTS in gives:
        assert found.counts is not None
    assert (found.class_embeddings is not None) == (Gives.EMBEDDINGS in gives)
    assert (found.class_probabilities is not None) == (Gives.PROBABILITIES in gives)


@every_attack
@pytest.mark.parametrize(
    "labels",
    [(1, 1, 4, 6, 6), (5, 5, 5), (7,), (0, 1, 2, 3, 4, 5), tuple(range(CLASSES)) * 3],
    ids=str,
)
def test_counts_are_not_negative_and_sum_to_the_number_of_instances(name, labels):
    made = client(name, labels)
    if name == "exact" and len(labels) >= CLASSES:
        pytest.skip("more samples than this head has room for")
    found = run(name, made.observe())
    for counts in (found.counts, found.certain, found.rounded):
        assert counts is None or int(counts.min()) >= 0
    if found.counts is not None:
        assert int(found.counts.sum()) == len(made.labels)
        assert torch.equal(found.present, found.counts > 0)
    if found.proportions is not None:
        assert float(found.proportions.min()) >= 0.0
        assert float(found.proportions.sum()) == pytest.approx(1.0)


def in_format(seen, dtype, device="cpu"):
    """The observation of a client that computes in this format, on this device."""

    def moved(tensor):
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    head, gradient, auxiliary = seen.head, seen.gradient, seen.auxiliary
    return replace(
        seen,
        head=replace(head, weight=moved(head.weight), bias=moved(head.bias)),
        gradient=type(gradient)(moved(gradient.weight), moved(gradient.bias)),
        gradients={name: moved(value) for name, value in seen.gradients.items()},
        after={name: moved(value) for name, value in seen.after.items()},
        model=seen.model.to(device, dtype),
        auxiliary=auxiliary and Auxiliary(moved(auxiliary.inputs), auxiliary.labels.to(device)),
    )


@every_attack
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_format_comes_in_and_double_precision_comes_out(name, dtype):
    expected = usual(name)
    try:
        found = run(name, in_format(client(name).observe(), dtype))
    except MissingKnowledge:
        assert name == "exact"
        assert dtype in (torch.float16, torch.bfloat16)
        return
    for field, tensor in tensors_of(found).items():
        if field == "present":
            assert tensor.dtype == torch.bool
        elif field in ("counts", "rounded", "certain", "embedding_labels"):
            assert tensor.dtype == torch.int64, field
        else:
            assert tensor.dtype == torch.float64, field
    assert torch.equal(found.present, expected.present)
    if found.counts is not None:
        assert torch.equal(found.counts, expected.counts)


@every_attack
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)
def test_results_are_on_the_device_of_the_gradient(name, device):
    found = run(name, in_format(client(name).observe(), torch.float64, device))
    for field, tensor in tensors_of(found).items():
        assert tensor.device.type == device, field


@every_attack
def test_the_batch_is_far_from_a_tie(name):
    """Relative noise of 1e-12, several thousand roundings, changes neither set nor counts."""
    seen = client(name).observe()
    gradient = seen.gradient
    typical = float(gradient.weight.square().mean().sqrt())

    def noisy(tensor, seed):
        return tensor * (1 + 1e-12 * torch.randn(tensor.shape, generator=rng(seed)).double())

    moved = replace(
        gradient,
        weight=noisy(gradient.weight, 1),
        bias=noisy(gradient.bias, 2),
        rounding=4e-12 * typical,
    )
    found, expected = run(name, replace(seen, gradient=moved)), usual(name)
    assert torch.equal(found.present, expected.present)
    if expected.counts is not None:
        assert torch.equal(found.counts, expected.counts)


@every_attack
@pytest.mark.parametrize("seed", range(2))
def test_renaming_the_classes_renames_the_result(name, seed):
    order = torch.randperm(CLASSES, generator=rng(seed))
    found, expected = run(name, client(name).renamed(order).observe()), usual(name)
    assert torch.equal(found.present, expected.present[order])
    if expected.counts is not None:
        assert torch.equal(found.counts, expected.counts[order])
    if expected.raw is not None:
        # Some attacks draw random numbers for the classes in order.
        torch.testing.assert_close(found.raw, expected.raw[order], rtol=0, atol=0.05)
    assert found.certified == expected.certified
    assert set(found.flags) == set(expected.flags)


@every_attack
def test_a_summed_loss_gives_what_the_mean_gives(name):
    found = run(name, client(name).observe(loss=Loss(reduction="sum")))
    # Virtual clients train, in rounded steps; a sum taken for a mean is five times as large.
    trains = name in ("virtual", "synthetic")
    assert_same(found, usual(name), tolerance=1e-2 if trains else 1e-3)


def state_of(seen):
    """Copies of everything that an attack is given, and of the global state."""
    model = seen.model
    given = {
        "head": [seen.head.weight, seen.head.bias],
        "gradient": [seen.gradient.weight, seen.gradient.bias],
        "gradients": list(seen.gradients.values()),
        "after": list(seen.after.values()),
        "auxiliary": [seen.auxiliary.inputs, seen.auxiliary.labels] if seen.auxiliary else [],
        "model": list(model.state_dict().values()),
        "its gradients": [value.grad for value in model.parameters()],
        "random numbers": [torch.random.get_rng_state()],
    }
    copied = {name: [tensor.clone() for tensor in tensors] for name, tensors in given.items()}
    rest = {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [value.requires_grad for value in model.parameters()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
            )
        ],
        "settings": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
        "other random numbers": str(np.random.get_state()),
    }
    return copied, rest


@every_attack
@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "batchnorm and dropout"])
def test_nothing_that_is_passed_in_is_changed(name, noisy):
    seen = client(name, (1, 1, 4, 6, 6), noisy=noisy and name != "soft-label").observe()
    for value in seen.model.parameters():
        value.grad = torch.ones_like(value)
    tensors, rest = state_of(seen)
    run(name, seen)
    tensors_now, rest_now = state_of(seen)
    for what, before in tensors.items():
        assert all(map(torch.equal, tensors_now[what], before)), what
    assert rest_now == rest


@every_attack
@pytest.mark.parametrize("told_size", [True, False], ids=["batch size", "no batch size"])
@pytest.mark.parametrize("labels", [(1, 1, 4, 6, 6), (3, 3, 3, 3), (0, 7, 7)], ids=str)
def test_no_class_is_invented_where_the_gradient_names_it_absent(name, told_size, labels):
    """Absent classes have positive rows, far above those of the present classes."""
    if not told_size and {Need.BATCH_SIZE, Need.ONE_SAMPLE} & {*needs_of(name)}:
        pytest.skip("it needs the batch size")
    made = client(name, labels)
    seen, absent = made.observe(told_size=told_size), made.counts == 0
    assert float(seen.gradient.bias[absent].min()) > 0.05
    assert float(seen.gradient.bias[~absent].max()) < -0.05
    assert float(seen.gradient.weight[absent].min()) >= 0.0
    found = run(name, seen)
    assert not found.present[absent].any()
    assert found.counts is None or not found.counts[absent].any()


@every_attack
def test_the_same_observation_gives_the_same_result(name):
    """Whatever the state of the global random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = run(name, client(name).observe())
    assert_same(found, usual(name))
