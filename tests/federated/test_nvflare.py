"""The filter for NVIDIA FLARE: what is audited, what passes and what is refused."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

import labelleak
from labelleak.federated import read_rounds
from labelleak.federated.nvflare import REFUSAL_HEADER
from nvflare_in_process import (
    RATE,
    ROUND,
    SAMPLES,
    arrays,
    change,
    context,
    made_site,
    made_update,
    run,
    start,
    weights,
)


@pytest.fixture
def update():
    return made_update()


@pytest.fixture
def site(tmp_path, update):
    return partial(made_site, tmp_path, update)


KINDS = {
    "arrays": lambda update: DXO(DataKind.WEIGHTS, data=arrays(update.after)),
    "tensors": lambda update: DXO(DataKind.WEIGHTS, data=dict(update.after)),
    "change": lambda update: DXO(DataKind.WEIGHT_DIFF, data=arrays(change(update))),
    "change of tensors": lambda update: DXO(DataKind.WEIGHT_DIFF, data=change(update)),
    "model": lambda update: DXO(
        DataKind.FL_MODEL, data={"params": arrays(update.after), "params_type": "FULL"}
    ),
    "change of a model": lambda update: DXO(
        DataKind.FL_MODEL, data={"params": arrays(change(update)), "params_type": "DIFF"}
    ),
    "collection": lambda update: DXO(
        DataKind.COLLECTION, data={"only": DXO(DataKind.WEIGHTS, data=arrays(update.after))}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_the_weights_is_audited_and_passes_as_it_is(tmp_path, site, update, kind):
    result = KINDS[kind](update).to_shareable()
    sent = result["DXO"]
    assert run(site(), update, result) is result
    assert result["DXO"]["data"] is sent["data"]
    assert result["DXO"]["meta"] == sent["meta"] == {}
    (record,) = read_rounds(tmp_path / "r")
    seen = labelleak.observe_update(
        None, update.before, update.after, learning_rate=RATE, batch_size=SAMPLES
    )
    assert record["audit"]["counts"] == labelleak.restore(seen, "ilrg").counts.tolist()
    assert record["audit"]["counts"] == update.true_counts.tolist()
    assert (record["round"], record["client"]) == (ROUND, "site-1")
    assert (record["run"], record["task"]) == ("job-7", "train")
    assert (record["framework"], record["verdict"]) == ("nvflare", "over")
    assert (record["action"], record["error"]) == ("sent", None)


def test_filters_around_a_defense_show_what_it_buys(tmp_path, site, update):
    first, last = site(label="before"), site(label="after")
    fl_ctx, result = context(), weights(update)
    start(first, update, fl_ctx)
    start(last, update, fl_ctx)
    first.process(result, fl_ctx)
    for array in result["DXO"]["data"].values():
        np.add(
            array, np.random.default_rng(0).normal(size=array.shape), out=array, casting="unsafe"
        )
    last.process(result, fl_ctx)
    before, after = read_rounds(tmp_path / "r")
    assert (before["label"], after["label"]) == ("before", "after")
    assert before["audit"]["score"]["exact"]
    assert not after["audit"]["score"]["exact"]


def test_arrays_are_left_as_they_are(site, update):
    data = arrays(update.after)
    for array in data.values():
        array.flags.writeable = False
    copies = {name: array.copy() for name, array in data.items()}
    run(site(), update, DXO(DataKind.WEIGHTS, data=data).to_shareable())
    assert all(np.array_equal(copies[name], array) for name, array in data.items())


def test_weights_trained_in_place_are_compared_with_those_received(tmp_path, site, update):
    data = {name: array.copy() for name, array in arrays(update.before).items()}
    task = DXO(DataKind.WEIGHTS, data=data).to_shareable()
    audit, fl_ctx = site(), context()
    start(audit, update, fl_ctx, task)
    for name, array in data.items():
        array[...] = update.after[name].numpy()
    audit.process(DXO(DataKind.WEIGHTS, data=data).to_shareable(), fl_ctx)
    (record,) = read_rounds(tmp_path / "r")
    assert record["audit"]["score"]["exact"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_is_not_in_the_reply(tmp_path, site, update, kind):
    reply = run(site("refuse"), update, KINDS[kind](update).to_shareable())
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert set(reply) == set(make_reply(ReturnCode.OK))
    assert reply.get_header(AppConstants.CURRENT_ROUND) == ROUND
    told = reply.get_header(REFUSAL_HEADER)
    assert "the policy allows at most 50.0% of what a guess leaves open" in told
    assert "100" not in told, "how much was restored stays on the site"
    (record,) = read_rounds(tmp_path / "r")
    assert (record["action"], record["verdict"]) == ("refused", "over")


def without_head(update):
    return {name: value for name, value in arrays(update.after).items() if name != "fc.weight"}


def with_nan(update):
    data = {name: array.copy() for name, array in arrays(update.after).items()}
    data["fc.weight"][0, 0] = np.nan
    return data


MALFORMED = {
    "missing": lambda update: DXO(DataKind.WEIGHTS, data=without_head(update)).to_shareable(),
    "NaN": lambda update: DXO(DataKind.WEIGHTS, data=with_nan(update)).to_shareable(),
    "change missing": lambda update: DXO(
        DataKind.WEIGHT_DIFF, data={"fc.weight": np.zeros(3)}
    ).to_shareable(),
    "text": lambda update: DXO(
        DataKind.WEIGHTS, data={**arrays(update.after), "fc.weight": "none"}
    ).to_shareable(),
    "objects": lambda update: DXO(
        DataKind.WEIGHTS, data={**arrays(update.after), "fc.weight": np.array([object()])}
    ).to_shareable(),
    "encrypted": lambda update: DXO(
        DataKind.WEIGHTS, data=dict.fromkeys(update.after, b"secret")
    ).to_shareable(),
    "own format": lambda update: DXO(
        DataKind.APP_DEFINED, data={"weights": arrays(update.after)}
    ).to_shareable(),
    "no kind": lambda update: DXO("other", data=arrays(update.after)).to_shareable(),
    "model of nothing": lambda update: DXO(DataKind.FL_MODEL, data={"params": 3}).to_shareable(),
    "no object": lambda update: Shareable({"weights": arrays(update.after)}),
    "broken object": lambda update: broken({"kind": DataKind.WEIGHTS, "data": 3}),
    "a second object": lambda update: beside(weights(update), "more", arrays(update.after)),
    "a second object beside metrics": lambda update: beside(
        DXO(DataKind.METRICS, data={"loss": 0.1}).to_shareable(), "__more", arrays(update.after)
    ),
    "weights in an error": lambda update: failing(weights(update)),
    "an optimizer's state": lambda update: DXO(
        DataKind.FL_MODEL,
        data={"params": arrays(update.after), "optimizer_params": arrays(change(update))},
    ).to_shareable(),
    "broken collection": lambda update: broken(
        {"kind": DataKind.COLLECTION, "data": {"one": arrays(update.after)}}
    ),
}


def beside(result, name, content):
    result[name] = content
    return result


def failing(result):
    result.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    return result


def broken(content):
    result = Shareable()
    result.set_header("__content_type__", "DXO")
    result["DXO"] = content
    return result


@pytest.mark.parametrize("what", MALFORMED)
def test_what_cannot_be_audited_is_flagged_or_refused(tmp_path, site, update, what):
    result = MALFORMED[what](update)
    kept = dict(result)
    assert run(site("record"), update, result) is result
    assert list(result) == list(kept)
    (record,) = read_rounds(tmp_path / "r")
    # Where the weights themselves are there, they give away everything.
    assert record["verdict"] in ("failed", "over")
    assert record["error"]
    reply = run(site("refuse"), update, result)
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert set(reply) == set(make_reply(ReturnCode.OK))
    assert len(read_rounds(tmp_path / "r")) == 2


@pytest.mark.parametrize(
    "result",
    [
        lambda: DXO(DataKind.METRICS, data={"loss": 0.1}).to_shareable(),
        lambda: DXO(DataKind.STATISTICS, data={"accuracy": 3}).to_shareable(),
        lambda: make_reply(ReturnCode.OK),
        lambda: make_reply(ReturnCode.EXECUTION_EXCEPTION),
    ],
)
def test_what_holds_no_weights_passes(tmp_path, site, update, result):
    made = result()
    assert run(site("record"), update, made) is made
    assert run(site("refuse"), update, made) == made
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("action", ["record", "refuse"])
def test_the_log_which_a_job_may_stream_says_no_share(site, update, caplog, action):
    with caplog.at_level("INFO"):
        run(site(action), update, weights(update))
    assert "the verdict is 'over'" in caplog.text
    assert "100" not in caplog.text


TASKS = {
    "nothing received": lambda update: None,
    "no object": lambda update: Shareable({"weights": 1}),
    "a change": lambda update: DXO(DataKind.WEIGHT_DIFF, data=change(update)).to_shareable(),
    "no head": lambda update: DXO(DataKind.WEIGHTS, data={"a": np.zeros(3)}).to_shareable(),
}


@pytest.mark.parametrize("what", TASKS)
def test_without_the_weights_received_there_is_no_audit(tmp_path, site, update, what):
    for action in ("record", "refuse"):
        audit, fl_ctx = site(action), context()
        if what != "nothing received":
            start(audit, update, fl_ctx, TASKS[what](update))
        reply = audit.process(weights(update), fl_ctx)
        assert (reply.get_return_code() == ReturnCode.OK) == (action == "record")
    record, _ = read_rounds(tmp_path / "r")
    assert "the weights received are not known" in record["error"]
