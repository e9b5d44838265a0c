"""The audit of DP-SGD steps: what the attack is given, what is recorded, what a refusal does."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("opacus", reason="needs the extra opacus")

from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from opacus.utils.batch_memory_manager import BatchMemoryManager

from labelleak.federated import Auditor, Policy, read_rounds
from labelleak.federated.opacus import LeakageAudit, _clipped
from labelleak.lab.datasets import load
from labelleak.lab.networks import build

# Of Opacus: the generator is not a secure one, hooks see no gradient at the inputs, and the orders
# it tries are too few for some epsilons.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Optimal order is"),
]

CLASSES, SAMPLES, EXPECTED = 5, 60, 10
UNBOUND = 1e6


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        yield


def network():
    generator = torch.random.get_rng_state()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    torch.random.set_rng_state(generator)
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (SAMPLES,), generator=generator)
    # Inputs that differ little: iLRG is right about all counts then.
    return TensorDataset(1 + 0.02 * torch.randn(SAMPLES, 8, generator=generator), labels)


class Site:
    def __init__(self, noise=0.0, bound=UNBOUND, accountant="rdp", model=None, **options):
        self.engine = PrivacyEngine(accountant=accountant)
        self.loss = nn.CrossEntropyLoss(reduction=options.get("loss_reduction", "mean"))
        model = network() if model is None else model
        made = self.engine.make_private(
            module=model,
            criterion=self.loss,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
            data_loader=DataLoader(data(), batch_size=EXPECTED),
            noise_multiplier=noise,
            max_grad_norm=bound,
            noise_generator=torch.Generator().manual_seed(0),
            **options,
        )
        self.module, self.optimizer, self.loader = made[0], made[1], made[-1]
        if len(made) == 4:
            self.loss = made[2]

    def audit(self, folder, action="record", **options):
        policy = Policy(action=action, records=str(folder), attack="ilrg")
        return LeakageAudit(self.optimizer, self.module, policy, **options)

    def backward(self, inputs, labels):
        self.loss(self.module(inputs), labels).backward()

    def step(self, inputs, labels, audit=None):
        self.optimizer.zero_grad()
        self.backward(inputs, labels)
        if audit is not None:
            audit.labels(labels)
        self.optimizer.step()


@pytest.fixture
def given(monkeypatch):
    """What the auditor is given, by the name of the argument."""
    seen = {}

    def spy(self, before, gradients, training, occasion, **known):
        seen.update(before=before, gradients=gradients, training=training, **known)
        return audit_gradients(self, before, gradients, training, occasion, **known)

    audit_gradients = Auditor.audit_gradients
    monkeypatch.setattr(Auditor, "audit_gradients", spy)
    return seen


def plain_gradient(inputs, labels):
    """Of the mean loss over these samples, by autograd, without Opacus."""
    model = network()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    return model[2].weight.grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", ["hooks", "ew", "ghost"])
def test_the_attack_sees_the_mean_over_the_samples_drawn(tmp_path, given, mode, reduction):
    site = Site(grad_sample_mode=mode, loss_reduction=reduction)
    audit = site.audit(tmp_path)
    inputs, labels = next(batch for batch in site.loader if len(batch[1]) != EXPECTED)
    site.step(inputs, labels, audit)
    assert given["training"].batch_size == len(labels)
    seen = given["gradients"]["_module.2.weight"]
    torch.testing.assert_close(seen, plain_gradient(inputs, labels), rtol=1e-4, atol=1e-7)
    assert audit.decision.record.audit["score"]["exact"]


def test_an_attack_may_have_the_whole_network(tmp_path):
    """The first tensor of its snapshot is another layer's: 16 rows, and no 16 classes."""
    site = Site()
    audit = site.audit(tmp_path, model=network())
    site.step(*data()[:8], audit)
    assert audit.decision.record.audit["score"]["exact"]


def test_a_part_of_the_network_may_be_called_as_wrappers_are(tmp_path):
    site = Site(model=nn.Sequential(OrderedDict(before=nn.Linear(8, 8), module=network())))
    audit = site.audit(tmp_path, head="module.2")
    site.step(*data()[:8], audit)
    assert audit.decision.record.error is None
    assert audit.decision.record.audit["score"]["exact"]


def test_batches_that_add_up_are_one(tmp_path, given):
    site = Site(poisson_sampling=False)
    audit = site.audit(tmp_path)
    site.optimizer.zero_grad()
    batches = list(site.loader)[:2]
    for batch in batches:
        site.backward(*batch)
        audit.labels(batch[1])
    site.optimizer.step()
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert given["training"].batch_size == 2 * EXPECTED
    torch.testing.assert_close(
        given["gradients"]["_module.2.weight"],
        plain_gradient(inputs, labels),
        rtol=1e-4,
        atol=1e-7,
    )
    assert audit.decision.record.audit["score"]["exact"]


def test_a_batch_in_several_parts_is_audited_as_a_whole(tmp_path, given):
    site = Site()
    audit = site.audit(tmp_path)
    with BatchMemoryManager(
        data_loader=site.loader, max_physical_batch_size=4, optimizer=site.optimizer
    ) as parts:
        for inputs, labels in parts:
            site.step(inputs, labels, audit)
            assert len(labels) <= 4
            if audit.decision is not None:
                break
    record = audit.decision.record
    assert record.audit["batch_size"] > 4
    assert record.audit["score"]["exact"]
    # Without labels the number of samples is the expected one.
    site = Site()
    audit = site.audit(tmp_path / "unlabeled")
    with BatchMemoryManager(
        data_loader=site.loader, max_physical_batch_size=4, optimizer=site.optimizer
    ) as parts:
        for inputs, labels in parts:
            site.step(inputs, labels)
            if audit.decision is not None:
                break
    assert given["training"].batch_size == EXPECTED


@pytest.mark.parametrize(
    ("mode", "clipping"), [("hooks", "flat"), ("hooks", "per_layer"), ("ghost", "flat")]
)
def test_what_clipping_took_is_given_back_on_average(tmp_path, given, mode, clipping):
    bound = 0.01 if clipping == "flat" else [0.01, 0.01, 0.02, 0.005]
    site = Site(bound=bound, grad_sample_mode=mode, clipping=clipping)
    site.audit(tmp_path)
    inputs, labels = (part[:1].expand(6, *part.shape[1:]) for part in data()[:1])
    site.step(inputs, labels)
    # Six times the same sample: the mean factor is that of each.
    seen = given["gradients"]["_module.2.weight"]
    torch.testing.assert_close(seen, plain_gradient(inputs, labels), rtol=1e-3, atol=1e-6)


def test_a_server_finds_what_clipping_took_with_samples_of_its_own():
    """So an audit that gives it back supposes no more than a server knows."""
    digits = load("mnist-sample")
    model = build("fcn-3", classes=10, image_shape=digits.image_shape, seed=0)
    shares = []
    for batch in (torch.arange(32), torch.arange(4000, 4050)):
        wrapped = GradSampleModule(model)
        inputs, labels = digits.batch(batch)
        nn.functional.cross_entropy(wrapped(inputs), labels).backward()
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=32,
        )
        shares.append(next(iter(_clipped(optimizer)[1].values())))
        optimizer.zero_grad()
        wrapped.to_standard_module()
    assert shares[0] < 0.3
    assert shares[1] == pytest.approx(shares[0], rel=0.1)


def test_the_hook_that_was_there_goes_on(tmp_path):
    site = Site(noise=1.0)
    audit = site.audit(tmp_path, engine=site.engine)
    for inputs, labels in list(site.loader)[:3]:
        site.step(inputs, labels, audit)
    assert site.engine.accountant.history == [(1.0, EXPECTED / SAMPLES, 3)]


def test_an_error_of_the_other_hook_is_its_own(tmp_path):
    def complain(_):
        raise RuntimeError("of the other hook")

    site = Site()
    site.optimizer.attach_step_hook(complain)
    site.audit(tmp_path)
    with pytest.raises(RuntimeError, match="of the other hook"):
        site.step(*data()[:4])


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_is_the_engines(tmp_path, accountant):
    site = Site(noise=1.0, accountant=accountant)
    audit = site.audit(tmp_path, engine=site.engine, delta=1e-3, client="a")
    for inputs, labels in list(site.loader)[:2]:
        site.step(inputs, labels, audit)
        expected = site.engine.get_epsilon(1e-3)
        assert audit.decision.record.epsilon == pytest.approx(expected, rel=1e-9)
    records = read_rounds(tmp_path)
    assert [record["round"] for record in records] == [1, 2]
    assert records[0]["epsilon"] < records[1]["epsilon"]
    assert {record["delta"] for record in records} == {1e-3}
    assert {record["framework"] for record in records} == {"opacus"}
    assert {record["client"] for record in records} == {"a"}


def test_without_noise_or_an_engine_there_is_no_epsilon(tmp_path):
    for told in (False, True):
        site = Site()
        audit = site.audit(tmp_path, engine=site.engine if told else None)
        site.step(*data()[:4], audit)
        assert audit.decision.record.epsilon in (None, math.inf)
    assert {record["epsilon"] for record in read_rounds(tmp_path)} == {None}


def test_noise_is_seen_by_the_attack(tmp_path):
    site = Site(noise=50.0, bound=1.0)
    audit = site.audit(tmp_path)
    site.step(*data()[:20], audit)
    assert audit.decision.record.verdict == "inconclusive"
    assert "sums_not_zero" in {flag["name"] for flag in audit.decision.record.audit["flags"]}


def test_training_is_the_same_with_an_audit(tmp_path):
    weights = []
    for audited in (True, False):
        torch.manual_seed(5)
        site = Site(noise=1.0, bound=1.0)
        audit = site.audit(tmp_path, engine=site.engine) if audited else None
        for inputs, labels in site.loader:
            site.step(inputs, labels, audit)
        weights.append([value.clone() for value in site.module.state_dict().values()])
        weights[-1].append(torch.rand(3))  # the generator is where it was, too
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    assert len(read_rounds(tmp_path)) == SAMPLES // EXPECTED


def test_a_refused_step_changes_no_weight(tmp_path):
    site = Site()
    audit = site.audit(tmp_path, action="refuse")
    before = [value.clone() for value in site.module.state_dict().values()]
    for _ in range(2):
        site.step(*data()[:8], audit)
        assert not audit.decision.send
        assert audit.decision.record.verdict == "over"
    after = site.module.state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert [record["action"] for record in read_rounds(tmp_path)] == ["refused"] * 2


def spoil_with_nan(site, audit, inputs, labels):
    site.step(inputs * math.nan, labels, audit)


def spoil_labels(site, audit, inputs, labels):
    audit.labels(labels[:3])
    site.step(inputs, labels)


def spoil_classes(site, audit, inputs, labels):
    audit.labels(labels + CLASSES)
    site.step(inputs, labels)


def spoil_types(site, audit, inputs, labels):
    audit.labels("labels")
    site.step(inputs, labels)


def spoil_with_nothing(site, audit, inputs, labels):
    site.step(inputs[:0], labels[:0], audit)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("action", ["record", "refuse"])
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_with_nan, "NaN"),
        (spoil_labels, "3 true labels"),
        (spoil_classes, ""),
        (spoil_types, ""),
        (spoil_with_nothing, "noise alone"),
    ],
)
def test_what_is_wrong_ends_no_training(tmp_path, action, spoil, text):
    site = Site()
    audit = site.audit(tmp_path, action=action)
    before = [value.clone() for value in site.module.state_dict().values()]
    spoil(site, audit, *data()[:8])
    assert audit.decision.record.verdict == "failed"
    assert text in audit.decision.record.error
    assert audit.decision.send == (action == "record")
    if action == "refuse":
        after = site.module.state_dict().values()
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert len(read_rounds(tmp_path)) == 1


def test_a_head_that_is_not_clear_ends_no_training(tmp_path):
    site = Site()
    audit = site.audit(tmp_path, head="nowhere")
    site.step(*data()[:8], audit)
    assert audit.decision.record.verdict == "failed"
    assert "nowhere" in audit.decision.record.error


def test_what_is_wrong_with_the_settings_is_told_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"delta 1\.5: it must be above 0"):
        Site().audit(tmp_path, delta=1.5)
    site = Site()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes train together"):
        site.audit(tmp_path)
