"""The mod for Flower's clients: the site's own policy, what it is told, and what it shares."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from flower_in_process import (
    CLASSES,
    RATE,
    SAMPLES,
    answer,
    context,
    instruction,
    made_policy,
    made_update,
    reply_to,
)
from labelleak import UnreadableFile
from labelleak.federated import read_rounds
from labelleak.federated.flower import REFUSED, LeakageAudit, provide_labels
from labelleak.training import LocalTraining


@pytest.fixture
def update():
    return made_update()


@pytest.fixture
def policy(tmp_path):
    return partial(made_policy, tmp_path)


def records(tmp_path):
    return read_rounds(tmp_path / "r")


@pytest.mark.parametrize("labels", [[0, CLASSES], [-1]])
def test_labels_that_are_no_classes_are_not_told(update, policy, tmp_path, labels):
    _, left = answer(LeakageAudit(policy("refuse")), update, given=labels)
    assert left.error.code == REFUSED
    (record,) = records(tmp_path)
    assert "the labels provided are not classes 0 to 4" in record["error"]
    assert "classes" not in left.error.reason


def source(tmp_path):
    told = records(tmp_path)[-1]["audit"]["source"]
    return {**told["training"], "instances": told["instances"]}


def test_the_message_comes_before_the_run_and_the_run_before_what_is_given(
    update, policy, tmp_path
):
    message = instruction(update[0].before, lr=0.1, momentum=0.5)
    audit = LeakageAudit(
        policy(), training=LocalTraining(learning_rate=0.3, momentum=0.1, weight_decay=0.01)
    )
    found = update[0]

    def app(message, _):
        return reply_to(message, found.after, num_examples=8.0)

    here = context(learning_rate=0.2, batch_size=8, local_epochs=1, momentum=0.9)
    audit(message, here, app)
    step = source(tmp_path)
    assert (step["learning_rate"], step["momentum"], step["weight_decay"]) == (0.1, 0.5, 0.01)
    assert (step["batch_size"], step["instances"], step["epochs"]) == (8, 8, 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["lion", "Lion", "lamb"])
def test_an_optimizer_that_cannot_be_read_is_said(update, policy, tmp_path, name):
    message = instruction(update[0].before, lr=RATE, optimizer=name)
    answer(LeakageAudit(policy()), update, message=message)
    (record,) = records(tmp_path)
    assert (record["verdict"], record["audit"]) == ("failed", None)
    assert f"optimizer '{name.lower()}' cannot be read" in record["error"]


@pytest.mark.parametrize("name", ["adam", "AdamW"])
def test_an_adaptive_optimizer_is_flagged(update, policy, tmp_path, name):
    message = instruction(update[0].before, lr=RATE, optimizer=name)
    answer(LeakageAudit(policy()), update, message=message)
    (record,) = records(tmp_path)
    assert "adaptive_optimizer" in {flag["name"] for flag in record["audit"]["flags"]}
    assert record["audit"]["verdict"] != "within"


def test_an_optimizer_that_was_told(update, policy, tmp_path):
    answer(LeakageAudit(policy()), update)
    assert (source(tmp_path)["optimizer"], source(tmp_path)["momentum"]) == (None, None)
    message = instruction(update[0].before, lr=RATE, optimizer="SGD", momentum=0.0)
    answer(LeakageAudit(policy()), update, message=message)
    assert (source(tmp_path)["optimizer"], source(tmp_path)["momentum"]) == ("sgd", 0.0)


def test_other_keys(update, policy, tmp_path):
    message = instruction(update[0].before, eta=0.1, lr=7.0)
    keys = {"learning_rate": ("eta",), "instances": ("samples",)}
    audit = LeakageAudit(policy(), keys=keys, training=LocalTraining(steps=1))
    answer(audit, update, message=message, samples=SAMPLES, num_examples=1)
    assert source(tmp_path)["learning_rate"] == 0.1
    assert source(tmp_path)["instances"] == SAMPLES


def test_an_unknown_field_of_keys_is_refused(policy):
    with pytest.raises(ValueError, match="'rate' is no field"):
        LeakageAudit(policy(), keys={"rate": ("eta",)})


def test_before_and_after_a_defense(update, policy, tmp_path):
    found, labels = update
    # LocalDpMod of Flower 1.22 fails on arrays without a dimension.
    before, after = (
        {name: value for name, value in state.items() if value.ndim}
        for state in (found.before, found.after)
    )
    app = ClientApp(
        mods=[
            LeakageAudit(policy(), label="after noise", epsilon=1.0),
            LocalDpMod(clipping_norm=1.0, sensitivity=2.0, epsilon=1.0, delta=1e-5),
            LeakageAudit(policy(), label="before noise"),
        ]
    )

    @app.train()
    def train(message, _):
        provide_labels(labels)
        return reply_to(message, after, num_examples=SAMPLES)

    left = app(instruction(before, lr=RATE), context(batch_size=SAMPLES))
    assert left.has_content()
    plain, noisy = records(tmp_path)
    assert (plain["label"], noisy["label"]) == ("before noise", "after noise")
    assert plain["audit"]["score"]["accuracy"] == 1.0
    assert noisy["audit"]["true_counts"] == plain["audit"]["true_counts"]
    assert noisy["verdict"] == "inconclusive"
    assert "sums_not_zero" in [flag["name"] for flag in noisy["audit"]["flags"]]


def with_site_policy(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    return context(node_config={"labelleak-policy": str(path)}, batch_size=SAMPLES)


def test_the_sites_own_policy_decides(update, policy, tmp_path):
    found, labels = update
    folder = tmp_path / "own"
    here = with_site_policy(tmp_path, f'action = "refuse"\nattack = "ilrg"\nrecords = "{folder}"')
    app = ClientApp(
        mods=[LeakageAudit(policy("record"), label="a"), LeakageAudit(policy(), label="b")]
    )

    @app.train()
    def train(message, _):
        provide_labels(labels)
        return reply_to(message, found.after, num_examples=SAMPLES)

    left = app(instruction(found.before, lr=RATE), here)
    assert left.error.code == REFUSED
    assert not (tmp_path / "r").exists()
    inner, outer = read_rounds(folder)
    assert (inner["label"], inner["action"]) == ("b", "sent")
    assert (outer["label"], outer["action"]) == ("a", "refused")
    # The file is read anew: the site may change its mind.
    with_site_policy(tmp_path, f'action = "record"\nrecords = "{folder}"')
    assert app(instruction(found.before, lr=RATE), here).has_content()


@pytest.mark.usefixtures("unchecked")
def test_a_site_with_a_policy_that_cannot_be_read_does_not_even_train(update, policy, tmp_path):
    trained = []
    here = with_site_policy(tmp_path, 'action = "refuze"')
    message = instruction(update[0].before, lr=RATE)
    left = LeakageAudit(policy("record"))(message, here, lambda *_: trained.append(1))
    assert not trained
    assert left.error.code == REFUSED
    (record,) = records(tmp_path)
    assert record["action"] == "refused"
    assert "refuze" in record["error"]


def test_a_policy_that_cannot_be_read_is_refused_at_once(tmp_path):
    with pytest.raises(UnreadableFile, match=r"none\.toml"):
        LeakageAudit(tmp_path / "none.toml")


@pytest.mark.parametrize(("label", "prefix"), [("", "labelleak-"), ("sent", "labelleak-sent-")])
def test_only_score_and_flags_are_shared_when_asked_for(update, policy, label, prefix):
    _, left = answer(LeakageAudit(policy(), share=True, label=label), update)
    metrics = dict(left.content["metrics"])
    assert metrics.pop("num-examples") == SAMPLES
    assert metrics[f"{prefix}accuracy"] == 1.0
    assert metrics[f"{prefix}sums_not_zero"] == 0
    assert all(key.startswith(prefix) for key in metrics)
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_a_raised_flag_is_shared(update, policy):
    noisy = dict(update[0].after)
    noisy["fc.bias"] = noisy["fc.bias"] + 0.1
    _, left = answer(LeakageAudit(policy(), share=True), update, after=noisy)
    assert left.content["metrics"]["labelleak-sums_not_zero"] == 1


def test_shared_entries_are_the_same_where_there_is_no_accuracy(update, policy):
    _, whole = answer(LeakageAudit(policy(), share=True), update)
    _, failed = answer(LeakageAudit(policy(), share=True), update, after={})
    # It restores which classes are present, and no counts.
    _, uncounted = answer(LeakageAudit(policy(attack="idlg"), share=True), update)
    for left in (failed, uncounted):
        assert set(whole.content["metrics"]) == set(left.content["metrics"])
        assert np.isnan(left.content["metrics"]["labelleak-accuracy"])


@pytest.mark.usefixtures("unchecked")
def test_labels_that_are_no_integers_are_refused(update, policy):
    def train(message, _):
        provide_labels([0.5] * SAMPLES)

    with pytest.raises(ValueError, match="integers are needed"):
        LeakageAudit(policy())(instruction(update[0].before, lr=RATE), context(), train)
