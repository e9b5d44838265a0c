from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from flower_in_process import context, instruction, reply_to
from labelleak import UnreadableFile
from labelleak.federated import Policy, read_rounds, train_locally
from labelleak.federated.flower import REFUSED, LeakageAudit, provide_labels
from labelleak.training import LocalTraining

CLASSES, RATE, SAMPLES = 5, 0.1, 8


@pytest.fixture
def update():
    """A model with BatchNorm, and one step on inputs that differ so little that iLRG is right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = OrderedDict(
            body=nn.Linear(6, 16), norm=nn.BatchNorm1d(16), act=nn.ReLU(), fc=nn.Linear(16, CLASSES)
        )
        model = nn.Sequential(layers).eval()
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    inputs = 1 + 0.02 * torch.randn(SAMPLES, 6, generator=generator)
    found = train_locally(model, inputs, labels, LocalTraining(learning_rate=RATE), classes=CLASSES)
    # What BatchNorm counts moves, too: it is no part of the gradient.
    found.after["norm.num_batches_tracked"] += 3
    found.after["norm.running_mean"] += 5
    return found, labels


@pytest.fixture
def policy(tmp_path):
    def make(action="warn", **fields):
        return Policy(action, records=str(tmp_path / "r"), **{"attack": "ilrg", **fields})

    return make


def answer(audit, update, *, message=None, after=None, given=None, **metrics):
    """One training under an audit; the message, the app's reply, and what leaves."""
    found, labels = update
    if message is None:
        message = instruction(found.before, lr=RATE, server_round=3)
    made = []

    def app(message, _):
        provide_labels(labels if given is None else given)
        metrics.setdefault("num_examples", SAMPLES)
        made.append(reply_to(message, found.after if after is None else after, **metrics))
        return made[0]

    left = audit(message, context(batch_size=SAMPLES), app)
    return made[0], left


def records(tmp_path):
    return read_rounds(tmp_path / "r")


def test_labels_are_found_in_the_weights_and_written_down(update, policy, tmp_path):
    audit = LeakageAudit(policy(), label="sent", epsilon=2.0, delta=1e-5)
    made, left = answer(audit, update)
    assert left is made
    (record,) = records(tmp_path)
    assert record["audit"]["counts"] == update[0].true_counts.tolist()
    assert record["audit"]["score"]["exact"] is True
    assert (record["verdict"], record["action"]) == ("over", "warned")
    about = (record["round"], record["client"], record["label"], record["framework"])
    assert about == (3, "node-7", "sent", "flower")
    assert (record["epsilon"], record["delta"]) == (2.0, 1e-5)


def test_what_leaves_is_what_the_app_made(update, policy):
    made, left = answer(LeakageAudit(policy()), update)
    for name, value in update[0].after.items():
        assert torch.equal(left.content["arrays"].to_torch_state_dict()[name], value)
    assert dict(left.content["metrics"]) == {"num-examples": SAMPLES}
    assert set(left.content) == {"arrays", "metrics"}
    assert left.metadata == made.metadata


def test_without_labels_there_is_no_score(update, policy, tmp_path):
    found, _ = update
    LeakageAudit(policy())(
        instruction(found.before, lr=RATE),
        context(batch_size=SAMPLES),
        lambda message, _: reply_to(message, found.after, num_examples=SAMPLES),
    )
    (record,) = records(tmp_path)
    assert record["audit"]["score"] is None
    assert record["audit"]["counts"] == found.true_counts.tolist()


@pytest.mark.parametrize("given", [list, np.array, iter])
def test_labels_come_as_tensors_lists_or_arrays(update, policy, tmp_path, given):
    labels = update[1].tolist()
    answer(LeakageAudit(policy()), update, given=given(labels))
    assert records(tmp_path)[0]["audit"]["true_counts"] == update[0].true_counts.tolist()


def test_labels_are_counted_by_the_head_of_a_wrapped_network(update, policy, tmp_path):
    found, _ = update
    before, after = (
        {f"_orig_mod.{name}": value for name, value in state.items()}
        for state in (found.before, found.after)
    )
    answer(LeakageAudit(policy()), update, message=instruction(before, lr=RATE), after=after)
    assert records(tmp_path)[0]["audit"]["true_counts"] == found.true_counts.tolist()


def test_labels_are_gone_after_the_round(update, policy, tmp_path):
    found, labels = update
    audit = LeakageAudit(policy())
    answer(audit, update)
    # Outside of an audit they go nowhere.
    provide_labels(labels)
    here = context(batch_size=SAMPLES)
    audit(
        instruction(found.before, lr=RATE),
        here,
        lambda message, _: reply_to(message, found.after, num_examples=SAMPLES),
    )
    assert records(tmp_path)[1]["audit"]["true_counts"] is None
    assert not here.state


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.again"])
def test_other_messages_pass(update, policy, tmp_path, kind):
    found, _ = update
    message = instruction(found.before, kind, lr=RATE)
    reply = reply_to(message, found.after)
    assert LeakageAudit(policy("refuse"))(message, context(), lambda *_: reply) is reply
    assert not (tmp_path / "r").exists()


def test_an_action_of_train_is_audited(update, policy, tmp_path):
    message = instruction(update[0].before, "train.fast", lr=RATE)
    answer(LeakageAudit(policy()), update, message=message)
    assert records(tmp_path)[0]["verdict"] == "over"


def test_a_refused_reply_is_an_error_that_holds_nothing(update, policy, tmp_path):
    _, left = answer(LeakageAudit(policy("refuse")), update)
    assert left.has_error()
    assert not left.has_content()
    assert left.error.code == REFUSED
    assert "more labels than the site's policy allows" in left.error.reason
    # Neither the score nor a count: they are measured by the labels.
    assert not any(letter.isdigit() for letter in left.error.reason)
    (record,) = records(tmp_path)
    assert record["action"] == "refused"
    assert "100.0%" in record["reason"]


def test_a_refusing_policy_sends_what_is_within_it(update, policy):
    made, left = answer(LeakageAudit(policy("refuse", threshold=1.0)), update)
    assert left is made


def broken(after, name, value):
    return {**after, name: value}


MALFORMED = {
    "NaN": lambda after: broken(after, "fc.weight", torch.full((CLASSES, 16), torch.nan)),
    "another shape": lambda after: broken(after, "fc.weight", torch.zeros(3, 3)),
    "a missing key": lambda after: {k: v for k, v in after.items() if k != "fc.weight"},
    "a missing body": lambda after: {k: v for k, v in after.items() if k != "body.weight"},
    "an unknown key": lambda after: broken(after, "labels", torch.zeros(4)),
    "no arrays in the record": lambda _: {},
    "an infinite body": lambda after: broken(after, "body.bias", torch.full((16,), torch.inf)),
}


@pytest.mark.parametrize("action", ["record", "refuse"])
@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_weights(update, policy, tmp_path, how, action):
    # Labels that nobody gives away as such: only what is malformed decides.
    audit = LeakageAudit(policy(action, threshold=1.0))
    made, left = answer(audit, update, after=MALFORMED[how](update[0].after))
    (record,) = records(tmp_path)
    assert record["verdict"] == "failed"
    assert record["error"]
    assert (left is made) == (action == "record")
    if action == "refuse":
        assert left.error.code == REFUSED
        assert record["error"] in left.error.reason


def content(message, **records):
    return Message(RecordDict(records), reply_to=message)


def odd_array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"nothing"):
    return Array(dtype, shape, stype, data)


REPLIES = {
    "nothing at all": lambda message, _: content(message),
    "two records": lambda message, after: content(
        message, arrays=ArrayRecord(after), more=ArrayRecord(after)
    ),
    "bytes of no array": lambda message, _: content(
        message, arrays=ArrayRecord({"x": odd_array()})
    ),
    "another format": lambda message, after: content(
        message,
        arrays=ArrayRecord(
            {
                name: Array("float32", (2,), "safetensors", Array(value.numpy()).data)
                for name, value in after.items()
            }
        ),
    ),
    "a shape beyond the bytes": lambda message, _: content(
        message,
        arrays=ArrayRecord(
            {
                "fc.weight": odd_array(
                    data=Array(np.zeros(2)).data.replace(b"(2,), }   ", b"(2222,), }")
                )
            }
        ),
    ),
    "text": lambda message, _: content(
        message, arrays=ArrayRecord({"fc.weight": Array(np.array(["a"]))})
    ),
    "a wordy number of samples": lambda message, after: reply_to(
        message, after, num_examples=[1.0, 2.0]
    ),
    "an impossible number of samples": lambda message, after: reply_to(
        message, after, num_examples=float("nan")
    ),
}


@pytest.mark.parametrize("action", ["record", "refuse"])
@pytest.mark.parametrize("how", REPLIES)
def test_malformed_replies(update, policy, tmp_path, how, action):
    message = instruction(update[0].before, lr=RATE)
    reply = REPLIES[how](message, update[0].after)
    audit = LeakageAudit(policy(action, threshold=1.0))
    left = audit(message, context(batch_size=SAMPLES), lambda *_: reply)
    assert records(tmp_path)[0]["verdict"] == "failed"
    assert (left is reply) == (action == "record")


@pytest.mark.parametrize("action", ["record", "refuse"])
def test_an_error_of_the_app_goes_on_as_it_is(update, policy, tmp_path, action):
    message = instruction(update[0].before, lr=RATE)
    reply = Message(Error(2, "no data"), reply_to=message)
    assert LeakageAudit(policy(action))(message, context(), lambda *_: reply) is reply
    (record,) = records(tmp_path)
    assert record["verdict"] == "failed"
    assert "an error of code 2: no data" in record["error"]


def test_an_exception_of_the_app_is_flowers_business(update, policy):
    def app(*_):
        raise RuntimeError("no data")

    message = instruction(update[0].before, lr=RATE)
    with pytest.raises(RuntimeError, match="no data"):
        LeakageAudit(policy())(message, context(), app)


@pytest.mark.parametrize("labels", [[0, CLASSES], [-1]])
def test_labels_that_are_no_classes_are_not_told(update, policy, tmp_path, labels):
    _, left = answer(LeakageAudit(policy("refuse")), update, given=labels)
    assert "the labels provided are not classes 0 to 4" in left.error.reason
    assert records(tmp_path)[0]["verdict"] == "failed"


def test_an_unknown_learning_rate_is_said(update, policy, tmp_path):
    answer(LeakageAudit(policy()), update, message=instruction(update[0].before))
    assert "learning rate is not known" in records(tmp_path)[0]["error"]


def test_what_the_app_does_to_the_message_does_not_blind_the_audit(update, policy, tmp_path):
    found, labels = update

    def app(message, _):
        provide_labels(labels)
        for name in list(message.content["arrays"]):
            message.content["arrays"][name] = Array(np.zeros(1, np.float32))
        return reply_to(message, found.after, num_examples=SAMPLES)

    LeakageAudit(policy())(instruction(found.before, lr=RATE), context(batch_size=SAMPLES), app)
    assert records(tmp_path)[0]["audit"]["score"]["exact"] is True


def test_half_precision(update, policy, tmp_path):
    found, labels = update
    half = [
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        for state in (found.before, found.after)
    ]
    message = instruction(half[0], lr=RATE)
    answer(LeakageAudit(policy()), (found, labels), message=message, after=half[1])
    assert records(tmp_path)[0]["audit"]["score"]["recall"] >= 0.5


def test_counters_of_batchnorm_that_an_average_made_floats(update, policy, tmp_path):
    found, _ = update
    averaged = {k: v if v.is_floating_point() else v.double() / 3 for k, v in found.before.items()}
    answer(LeakageAudit(policy()), update, message=instruction(averaged, lr=RATE))
    (record,) = records(tmp_path)
    assert record["error"] is None
    assert record["audit"]["score"]["exact"] is True


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


def test_before_and_after_a_defence(update, policy, tmp_path):
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
    assert "refuze" in left.error.reason
    assert records(tmp_path)[0]["action"] == "refused"


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
