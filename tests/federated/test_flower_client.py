"""The mod for Flower's clients: what is audited, and what malformed replies become."""

from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

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
from labelleak.federated import read_rounds
from labelleak.federated.flower import REFUSED, LeakageAudit, provide_labels


@pytest.fixture
def update():
    return made_update()


@pytest.fixture
def policy(tmp_path):
    return partial(made_policy, tmp_path)


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
    assert (record["run"], record["task"]) == ("1", "train")
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
def test_other_messages_pass_with_a_few_numbers(update, policy, tmp_path, kind):
    message = instruction(update[0].before, kind, lr=RATE)
    reply = reply_to(message, accuracy=0.5, num_examples=SAMPLES)
    assert LeakageAudit(policy("record"))(message, context(), lambda *_: reply) is reply
    left = LeakageAudit(policy("refuse"))(message, context(), lambda *_: reply)
    assert left.content == reply.content
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.again"])
def test_other_messages_do_not_pass_with_weights(update, policy, tmp_path, kind):
    found, _ = update
    message = instruction(found.before, kind, lr=RATE)
    reply = reply_to(message, found.after)
    assert LeakageAudit(policy("warn"))(message, context(), lambda *_: reply) is reply
    left = LeakageAudit(policy("refuse"))(message, context(), lambda *_: reply)
    assert left.error.code == REFUSED
    for record, action in zip(records(tmp_path), ("warned", "refused"), strict=True):
        assert (record["action"], record["verdict"], record["task"]) == (action, "failed", kind)
        assert record["unaudited"] == ["arrays (a record of 9 arrays)"]


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
    assert left.content == made.content
    assert left.metadata.reply_to_message_id == made.metadata.reply_to_message_id


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
        assert "not all of the reply could be audited" in left.error.reason


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
def test_an_error_of_the_app_goes_on_without_its_text(update, policy, tmp_path, action):
    message = instruction(update[0].before, lr=RATE)
    reply = Message(Error(2, "no data"), reply_to=message)
    left = LeakageAudit(policy(action))(message, context(), lambda *_: reply)
    if action == "record":
        assert left is reply
    else:
        told = "the app failed; the site's records say why"
        assert (left.error.code, left.error.reason) == (2, told)
    (record,) = records(tmp_path)
    assert record["verdict"] == "failed"
    assert "an error of code 2: no data" in record["error"]


def test_an_exception_of_the_app_is_flowers_business(update, policy, tmp_path):
    def app(*_):
        raise RuntimeError("no data")

    message = instruction(update[0].before, lr=RATE)
    with pytest.raises(RuntimeError, match="no data"):
        LeakageAudit(policy())(message, context(), app)
    # Flower would tell the server its text.
    left = LeakageAudit(policy("refuse"))(message, context(), app)
    assert (left.error.code, "no data" in left.error.reason) == (2, False)
    assert "RuntimeError: no data" in records(tmp_path)[0]["error"]


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
