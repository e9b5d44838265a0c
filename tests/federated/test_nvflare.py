"""The filter for NVIDIA FLARE: what passes, what is refused, and how it gets into a job or site."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.app_common.app_constant import AppConstants
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.private.fed.app.fl_conf import create_privacy_manager

import labelleak
from labelleak.federated import read_rounds, train_locally
from labelleak.federated.nvflare import REFUSAL_HEADER, LeakageAudit
from labelleak.training import LocalTraining

CLASSES, SAMPLES, RATE, ROUND = 5, 12, 0.1, 3


@pytest.fixture
def update():
    """A client's local step, of which iLRG restores all labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(
                body=nn.Linear(6, 16),
                norm=nn.BatchNorm1d(16),
                act=nn.ReLU(),
                fc=nn.Linear(16, CLASSES),
            )
        )
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    inputs = 1 + 0.02 * torch.randn(SAMPLES, 6, generator=generator)
    return train_locally(
        model.eval(), inputs, labels, LocalTraining(learning_rate=RATE), classes=CLASSES
    )


@pytest.fixture
def site(tmp_path, update):
    """Makes the filter of a site: its policy and labels are files."""

    def make(action="record", **settings):
        policy = tmp_path / "policy.toml"
        policy.write_text(f'action = "{action}"\nattack = "ilrg"\nrecords = "{tmp_path / "r"}"\n')
        labels = tmp_path / "labels.txt"
        own = torch.arange(CLASSES).repeat_interleave(update.true_counts)
        labels.write_text(" ".join(map(str, own.tolist())))
        known = {"policy": str(policy), "labels": str(labels)}
        training = {"learning_rate": RATE, "steps": 1, **settings.pop("training", {})}
        audit = LeakageAudit(**{**known, "training": training, **settings})
        audit.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_RESULT_CHAIN)
        return audit

    return make


def context():
    fl_ctx = FLContext()
    fl_ctx.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False, sticky=True)
    return fl_ctx


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def change(update):
    return {name: value - update.before[name] for name, value in update.after.items()}


def task_of(update):
    data = DXO(DataKind.WEIGHTS, data=arrays(update.before)).to_shareable()
    data.set_header(AppConstants.CURRENT_ROUND, ROUND)
    return data


def start(audit, update, fl_ctx, data=None):
    """What FLARE's client does before it trains."""
    fl_ctx.set_prop(
        FLContextKey.TASK_DATA,
        task_of(update) if data is None else data,
        private=True,
        sticky=False,
    )
    audit.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, None, private=True, sticky=False)


def run(audit, update, result, data=None):
    fl_ctx = context()
    start(audit, update, fl_ctx, data)
    return audit.process(result, fl_ctx)


def weights(update, **meta):
    return DXO(DataKind.WEIGHTS, data=arrays(update.after), meta=meta).to_shareable()


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
    assert (record["framework"], record["verdict"]) == ("nvflare", "over")
    assert (record["action"], record["error"]) == ("sent", None)


def test_filters_around_a_defence_show_what_it_buys(tmp_path, site, update):
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
    assert "the policy allows at most 50.0% of the labels" in told
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
    assert record["verdict"] == "failed"
    assert record["error"]
    reply = run(site("refuse"), update, result)
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert set(reply) == set(make_reply(ReturnCode.OK))
    assert len(read_rounds(tmp_path / "r")) == 2


@pytest.mark.parametrize(
    "result",
    [
        lambda: DXO(DataKind.METRICS, data={"loss": 0.1}).to_shareable(),
        lambda: DXO(DataKind.STATISTICS, data={"count": 3}).to_shareable(),
        lambda: make_reply(ReturnCode.OK),
        lambda: make_reply(ReturnCode.EXECUTION_EXCEPTION),
    ],
)
def test_what_holds_no_weights_passes(tmp_path, site, update, result):
    made = result()
    assert run(site("refuse"), update, made) is made
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


@pytest.mark.parametrize("labels", ["nowhere.txt", "broken"])
def test_labels_that_cannot_be_read_are_an_audit_that_failed(tmp_path, site, update, labels):
    path = tmp_path / labels
    if labels == "broken":
        path.write_text("1 2 cat")
    run(site(labels=str(path)), update, weights(update))
    (record,) = read_rounds(tmp_path / "r")
    assert str(path) in record["error"]


@pytest.mark.parametrize("content", [None, 'action = "maybe"'])
def test_a_policy_that_cannot_be_read_refuses_everything(tmp_path, site, update, content):
    path = tmp_path / "other.toml"
    if content is not None:
        path.write_text(content)
    reply = run(site(policy=str(path)), update, weights(update))
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "no policy to go by" in reply.get_header(REFUSAL_HEADER)


@pytest.mark.parametrize(
    ("settings", "said", "steps"),
    [
        ({"steps": None}, 1, 1),
        ({"steps": None, "batch_size": 6}, 7, 2),  # counted, whatever the client says
        ({"steps": 3}, 7, 3),
    ],
)
def test_the_number_of_steps(tmp_path, site, update, settings, said, steps):
    run(site(training=settings), update, weights(update, NUM_STEPS_CURRENT_ROUND=said))
    (record,) = read_rounds(tmp_path / "r")
    assert record["audit"]["local_steps"] == steps


def test_a_learning_rate_that_is_not_known_is_told(tmp_path, site, update):
    run(site(training={"learning_rate": None}), update, weights(update))
    (record,) = read_rounds(tmp_path / "r")
    assert "learning rate is not known" in record["error"]


def test_a_job_makes_the_filter_with_its_settings(tmp_path, site):
    job = FedJob(name="audited")
    job.set_app_packages(["labelleak"])
    audit = site(labels="labels-{SITE_NAME}.txt", training={"momentum": 0.9})
    job.to(audit, "site-1", filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.export_job(str(tmp_path))
    (config,) = tmp_path.glob("audited/**/config_fed_client.*")
    (chain,) = json.loads(config.read_text())["task_result_filters"]
    assert chain == {
        "tasks": ["train"],
        "filters": [
            {
                "path": "labelleak.federated.nvflare.LeakageAudit",
                "args": {
                    "policy": str(tmp_path / "policy.toml"),
                    "labels": "labels-{SITE_NAME}.txt",
                    "training": {"learning_rate": RATE, "steps": 1, "momentum": 0.9},
                },
            }
        ],
    }
    assert not list(tmp_path.glob("audited/**/*.py")), "labelleak is installed on the sites"


def test_a_task_that_is_not_named_is_told_once(site, update, caplog):
    audit, fl_ctx = site(), context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    for _ in range(2):
        start(audit, update, fl_ctx)
        audit.handle_event(EventType.AFTER_TASK_RESULT_FILTER, fl_ctx)
    assert caplog.text.count("results of task 'train' are not audited") == 1
    caplog.clear()
    audit, fl_ctx = site(), context()
    start(audit, update, fl_ctx)
    audit.process(weights(update), fl_ctx)
    audit.handle_event(EventType.AFTER_TASK_RESULT_FILTER, fl_ctx)
    assert "not audited" not in caplog.text


@pytest.mark.parametrize("action", ["record", "refuse"])
def test_a_sites_privacy_file_audits_every_job(tmp_path, site, update, action):
    made = site(action)
    settings = {"policy": made.policy, "labels": made.labels, "training": {"learning_rate": RATE}}
    entry = {"path": "labelleak.federated.nvflare.LeakageAudit", "args": settings}
    scope = {"name": "all", "task_data_filters": [entry], "task_result_filters": [entry]}
    folder = tmp_path / "site"
    for name in ("local", "startup"):
        (folder / name).mkdir(parents=True)
    privacy = {"scopes": [scope], "default_scope": "all"}
    (folder / "local" / "privacy.json").write_text(json.dumps(privacy))
    manager = create_privacy_manager(Workspace(str(folder), "site-1"), names_only=False)

    # As FLARE's client goes through the filters of the scope.
    fl_ctx = context()
    fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, manager.default_scope, private=True, sticky=False)
    task = task_of(update)
    passed = apply_filters("task_data_filters", task, fl_ctx, {}, "train", FilterKey.IN)
    assert passed is task
    result = weights(update, NUM_STEPS_CURRENT_ROUND=1)
    reply = apply_filters("task_result_filters", result, fl_ctx, {}, "train", FilterKey.OUT)
    (record,) = read_rounds(tmp_path / "r")
    assert record["audit"]["counts"] == update.true_counts.tolist()
    if action == "record":
        assert from_shareable(reply).data is result["DXO"]["data"]
    else:
        assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
        assert "DXO" not in reply
