"""Whatever a client sends: no exception, no changed argument, no disturbed generator."""

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from labelleak.federated import Auditor, Occasion, Policy, read_rounds
from labelleak.federated.replies import Snapshot, problem_of, text_of
from labelleak.isolation import undisturbed
from labelleak.training import LocalTraining

COUNTS = torch.tensor([2, 1, 0, 1])


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            OrderedDict(body=nn.Linear(3, 8), norm=nn.BatchNorm1d(8), fc=nn.Linear(8, 4))
        )


def states():
    """The weights before and after a step in which every parameter moved."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(inputs), torch.tensor([0, 0, 1, 3])).backward()
    optimizer.step()
    return before, {name: value.detach().clone() for name, value in model.state_dict().items()}


BEFORE, AFTER = states()
TRAINING = LocalTraining(learning_rate=0.1, batch_size=4)
OCCASION = Occasion(1, "a")
NAMES = list(AFTER)


def spoiled(value):
    """What a tensor may come as."""
    real = value.double()
    return {
        "nan": lambda: torch.full_like(real, torch.nan),
        "inf": lambda: real + torch.inf,
        "huge": lambda: torch.full_like(real, 1e300),
        "large": (1e30 * torch.ones_like(real)).float,
        "half": real.half,
        "bfloat16": real.bfloat16,
        "integer": real.long,
        "boolean": real.bool,
        "complex": lambda: real.to(torch.complex64),
        "sparse": real.to_sparse,
        "meta": lambda: real.to("meta"),
        "flat": real.flatten,
        "wide": lambda: torch.zeros(*value.shape, 2),
        "empty": lambda: torch.zeros(0),
        "number": lambda: 3.0,
        "none": lambda: None,
        "text": lambda: "weights",
        "array": real.numpy,
        "learns": real.requires_grad_,
        "zeros": lambda: torch.zeros_like(real),
    }


KINDS = list(spoiled(AFTER["fc.weight"]))
# The audit reads these as they are: numbers, in the right shape.
READABLE = {"half", "bfloat16", "learns", "zeros", "large", "huge"}


def auditor(folder, action, **options):
    return Auditor(Policy(action, attack="ilrg", records=str(folder)), **options)


def audited(one, before, after, training=TRAINING, **options):
    known = {"instances": 4, "true_counts": COUNTS, **options}
    return one.audit_update(before, after, training, OCCASION, **known)


def copies(state):
    return {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def assert_same(state, kept):
    assert list(state) == list(kept)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            assert value is kept[name]
        elif value.device.type != "meta":
            assert value.dtype == kept[name].dtype
            pair = [x.to_dense() if x.is_sparse else x for x in (value.detach(), kept[name])]
            torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)


def generators():
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([*KINDS, "gone"]), max_size=3),
    extra=st.sampled_from([None, "fc2.weight", "head.weight", "", "module."]),
    action=st.sampled_from(["record", "warn", "refuse"]),
    gradients=st.booleans(),
)
def test_any_reply_ends_in_a_decision(folder, changes, extra, action, gradients):
    after = dict(AFTER)
    for name, kind in changes.items():
        after[name] = None if kind == "gone" else spoiled(after[name])[kind]()
        if kind == "gone":
            del after[name]
    if extra is not None:
        after[extra] = torch.ones(2, 2)
    kept_before, kept_after, kept_counts = copies(BEFORE), copies(after), COUNTS.clone()
    state = generators()
    one = auditor(folder, action)
    if gradients:
        decision = one.audit_gradients(
            BEFORE, after, TRAINING, OCCASION, instances=4, true_counts=COUNTS
        )
    else:
        decision = audited(one, BEFORE, after)
    assert generators() == state
    assert_same(BEFORE, kept_before)
    assert_same(after, kept_after)
    assert torch.equal(COUNTS, kept_counts)
    record = decision.record
    # A buffer of integers stays one; a gradient of None is one of a frozen parameter; and only of
    # the head need a tensor be dense (an embedding's gradient is not).
    malformed = extra is not None or any(
        kind not in READABLE and not (kind == "sparse" and not name.startswith("fc."))
        for name, kind in changes.items()
        if not (gradients and kind == "gone") and not (kind == "flat" and AFTER[name].ndim == 1)
    )
    if malformed and not {"integer", "boolean", "complex", "none"} & set(changes.values()):
        assert record.error
        assert record.verdict in ("failed", "over")
    if action == "refuse":
        assert decision.send == (record.verdict == "within")
    else:
        assert decision.send
    assert decision.reason


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("after", [None, [], 3, {}, {1: torch.ones(2)}, {"fc.weight": None}])
def test_a_reply_that_is_no_state_dict(tmp_path, after):
    assert not audited(auditor(tmp_path, "refuse"), BEFORE, after).send
    assert audited(auditor(tmp_path, "warn"), BEFORE, after).record.action == "warned"
    assert [record["verdict"] for record in read_rounds(tmp_path)] == ["failed", "failed"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "values",
    [
        {"instances": float("inf")},
        {"instances": 10**40},
        {"instances": "many"},
        {"training": LocalTraining(learning_rate=0.1, batch_size=4, steps=10**12)},
        {"training": LocalTraining(learning_rate=[0.1, 0.1], batch_size=4)},
    ],
)
def test_numbers_that_a_client_made_up(tmp_path, values):
    decision = audited(auditor(tmp_path, "refuse"), BEFORE, AFTER, **values)
    assert (decision.send, decision.record.verdict) == (False, "failed")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "counts", [torch.tensor([1, 1]), torch.tensor([-1, 5, 0, 0]), torch.zeros(4), [2, 1, 0, 1]]
)
def test_labels_that_do_not_belong_to_the_reply(tmp_path, counts):
    decision = audited(auditor(tmp_path, "refuse"), BEFORE, AFTER, true_counts=counts)
    assert (decision.send, decision.record.verdict) == (False, "failed")


def test_an_update_of_nothing(tmp_path):
    decision = audited(auditor(tmp_path, "refuse"), BEFORE, dict(BEFORE))
    assert "zero everywhere" in decision.record.error
    assert not decision.send


def test_what_is_wrong_beside_the_head_does_not_hide_the_leak(tmp_path):
    after = {**AFTER, "body.weight": torch.full((8, 3), torch.nan)}
    decision = audited(auditor(tmp_path, "warn"), BEFORE, after)
    assert decision.record.audit["counts"] == COUNTS.tolist()
    assert decision.record.verdict == "over"
    assert "body.weight" in decision.record.error


def test_every_problem_is_named():
    after = dict(AFTER, more=torch.ones(1))
    after["fc.bias"] = torch.ones(3)
    after["norm.running_var"] = torch.full((8,), torch.nan)
    after["norm.weight"] = torch.ones(8).long()
    del after["body.bias"]
    text = problem_of(BEFORE, after, complete=True)
    for words in (
        "missing: body.bias",
        "no such tensors: more",
        "shapes differ: fc.bias",
        "NaN or infinite: norm.running_var",
        "no floating-point numbers: norm.weight",
    ):
        assert words in text
    assert problem_of(BEFORE, AFTER, complete=True) is None
    lacking = {"fc.weight": BEFORE["fc.weight"], "fc.bias": None}
    assert problem_of(BEFORE, lacking, complete=False) is None


def test_finite_entries_whose_sum_is_not():
    after = {**AFTER, "body.weight": torch.full((8, 3), 1e308, dtype=torch.float64)}
    assert problem_of(BEFORE, after, complete=True) is None


def test_wrapped_names_are_the_same_names(tmp_path):
    wrapped = {f"_module.{name}": value for name, value in AFTER.items()}
    one = auditor(tmp_path, "record")
    expected = audited(one, BEFORE, AFTER).record.audit["counts"]
    kept = Snapshot(wrapped, head=None, whole=False)
    assert set(kept) == {"fc.weight", "fc.bias"}
    for before in (BEFORE, Snapshot(BEFORE, head=None, whole=False)):
        decision = audited(one, before, wrapped)
        assert decision.record.error is None
        assert decision.record.audit["counts"] == expected


@pytest.mark.usefixtures("unchecked")
def test_a_whole_model_is_read_and_left_alone(tmp_path):
    model = network()
    kept = copies(model.state_dict())
    one = auditor(tmp_path, "record", model=model)
    state = generators()
    decision = audited(one, BEFORE, AFTER)
    assert decision.record.error is None
    other = audited(one, {**BEFORE, "fc.weight": torch.ones(4, 7)}, AFTER)
    assert other.record.verdict == "failed"
    lacking = {name: value for name, value in BEFORE.items() if name != "body.bias"}
    assert "the model is another one" in audited(one, lacking, lacking | AFTER).record.error
    assert_same(model.state_dict(), kept)
    assert generators() == state


def test_inside_an_inference_mode(tmp_path):
    with torch.inference_mode():
        before, after = copies(BEFORE), copies(AFTER)
        decision = audited(auditor(tmp_path, "record", model=network()), before, after)
    assert decision.record.error is None


def test_undisturbed_gives_back_what_was_drawn():
    state = generators()
    with undisturbed():
        torch.rand(3)
        np.random.rand(3)
        random.random()
    assert generators() == state


def test_errors_are_one_line():
    assert text_of(RuntimeError("a\n  b")) == "RuntimeError: a b"
    assert text_of(ValueError("so")) == "so"
    assert text_of(MemoryError()) == "MemoryError: MemoryError"
    assert len(text_of("x" * 10_000)) == 500
