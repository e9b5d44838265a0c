"""A FLARE task that wants more out than the policy allows: every door is shut, and written down."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, FLModelConst
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs

from labelleak.federated import read_rounds
from nvflare_doors import (
    BYTES,
    DOORS,
    HIDDEN,
    attributed,
    change_of_floats,
    collection,
    metrics,
    of_kind,
)
from nvflare_in_process import (
    ROUND,
    arrays,
    context,
    made_site,
    made_update,
    run,
    start,
    task_of,
    weights,
    wire,
)

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def update():
    return made_update(ids=torch.arange(4), mask=torch.ones(4, dtype=torch.bool))


@pytest.fixture
def refusing(tmp_path, update):
    """A policy that sends every update, so that what is hidden decides alone."""
    return made_site(tmp_path, update, "refuse", "threshold = 1.0")


def last_record(tmp_path):
    return read_rounds(tmp_path / "r")[-1]


def assert_nothing_hidden(result):
    sent = wire(result)
    assert not any(secret in sent for secret in BYTES)


def test_the_update_itself_is_within_the_policy(update, refusing, tmp_path):
    result = weights(update, NUM_STEPS_CURRENT_ROUND=1)
    left = run(refusing, update, result)
    assert left.get_return_code() == ReturnCode.OK
    assert left["DXO"]["meta"] == {"NUM_STEPS_CURRENT_ROUND": 1}
    for name, array in arrays(update.after).items():
        np.testing.assert_array_equal(left["DXO"]["data"][name], array)
    record = last_record(tmp_path)
    assert (record["verdict"], record["action"], record["unaudited"]) == ("within", "sent", [])


@pytest.mark.parametrize("task", ["train", "validate"])
@pytest.mark.parametrize("door", DOORS)
def test_no_door_is_open(update, refusing, tmp_path, door, task):
    left = run(refusing, update, DOORS[door](update), task=task)
    assert left.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert set(left) == {ReservedHeaderKey.HEADERS}
    assert_nothing_hidden(left)
    record = last_record(tmp_path)
    assert (record["action"], record["verdict"], record["task"]) == ("refused", "failed", task)
    assert record["error"]


@pytest.mark.parametrize("sticky", [True, False])
def test_public_properties_of_the_context_do_not_leave(update, refusing, tmp_path, sticky):
    fl_ctx = context()
    start(refusing, update, fl_ctx)
    fl_ctx.set_prop("x", HIDDEN, private=False, sticky=sticky)
    left = refusing.process(weights(update), fl_ctx)
    assert left.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert fl_ctx.get_all_public_props()["x"] is None
    assert last_record(tmp_path)["unaudited"] == ["context/x (an array of 5)"]


def test_attributes_do_not_leave(update, refusing):
    result = attributed(weights(update), x=HIDDEN)
    result["DXO"]["data"] = attributed(OrderedDict(result["DXO"]["data"]), x=HIDDEN)
    left = run(refusing, update, result)
    assert left.get_return_code() == ReturnCode.OK
    assert not hasattr(left, "x")
    assert type(left["DXO"]["data"]) is dict
    assert_nothing_hidden(left)


@pytest.mark.parametrize("door", ["an array in a header", "metrics", "a text in meta"])
def test_other_policies_send_it_and_write_it_down(update, tmp_path, door):
    result = DOORS[door](update)
    audit = made_site(tmp_path, update, "warn", "threshold = 1.0")
    assert run(audit, update, result) is result
    record = last_record(tmp_path)
    assert (record["action"], record["verdict"]) == ("warned", "failed")
    assert record["unaudited"]


def reused(update):
    """A client that answers in the task's own object, with all that the server put in it."""
    task = task_of(update)
    task.add_cookie("task", "7")
    task.set_header(ReservedHeaderKey.PEER_PROPS, {"name": "server"})
    task.set_header("wait", [1, 2.5, None])
    return task


PASSING = {
    "a model with metrics": lambda u: FLModelUtils.to_shareable(
        FLModel(
            params=arrays(u.after),
            metrics={"accuracy": 0.5, "loss": np.float32(0.1)},
            current_round=ROUND,
            meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1, FLMetaKey.SITE_NAME: "site-1"},
        )
    ),
    "a change": lambda u: of_kind(DataKind.WEIGHT_DIFF, arrays(change_of_floats(u))),
    "an object of a model": lambda u: of_kind(
        DataKind.FL_MODEL, {FLModelConst.PARAMS: arrays(u.after), FLModelConst.START_ROUND: 0}
    ),
    "metrics": lambda _: metrics(val_accuracy=0.5, loss=float("nan")),
    "a collection": lambda u: collection(
        a=DXO(DataKind.WEIGHTS, arrays(u.after)), b=DXO(DataKind.METRICS, {"loss": 0.5})
    ),
    "filters before": lambda u: weights(u, filter_history=["SVTPrivacy"]),
    "an error": lambda _: make_reply(ReturnCode.EXECUTION_EXCEPTION),
}


@pytest.mark.parametrize("what", PASSING)
def test_ordinary_results_pass(update, refusing, what):
    result = PASSING[what](update)
    left = run(refusing, update, result)
    assert left.get_return_code() == result.get_return_code()
    assert fobs.loads(wire(left)).keys() == result.keys()
    if "DXO" in result:
        assert left["DXO"]["meta"] == result["DXO"]["meta"]
        assert left["DXO"]["data"].keys() == result["DXO"]["data"].keys()


def test_what_the_server_sent_may_go_back(update, refusing):
    task = reused(update)
    answer = reused(update)
    answer["DXO"] = weights(update)["DXO"]
    left = run(refusing, update, answer, data=task)
    assert left.get_return_code() == ReturnCode.OK
    assert left.get_cookie_jar() == {"task": "7"}


def test_a_server_that_sends_a_text_for_every_answer(update, refusing, tmp_path):
    task, answer = task_of(update), weights(update)
    for number in range(100):
        task.set_header(f"label-{number}", "yes")
    for number in (3, 5, 8):
        answer.set_header(f"label-{number}", "yes")
    left = run(refusing, update, answer, data=task)
    assert left.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert last_record(tmp_path)["unaudited"][0] == "headers/label-3 (a text of 3 letters)"
