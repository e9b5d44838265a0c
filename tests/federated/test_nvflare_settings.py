"""The filter for NVIDIA FLARE: its settings, and how it gets into a job or a site."""

import json
from functools import partial

import pytest

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from labelleak.errors import UnreadableFile
from labelleak.federated import read_rounds
from labelleak.federated.nvflare import REFUSAL_HEADER, LeakageAudit
from nvflare_in_process import (
    RATE,
    context,
    made_site,
    made_update,
    run,
    start,
    task_of,
    weights,
)


@pytest.fixture
def update():
    return made_update()


@pytest.fixture
def site(tmp_path, update):
    return partial(made_site, tmp_path, update)


@pytest.mark.parametrize("labels", ["nowhere.txt", "broken"])
def test_labels_that_cannot_be_read_are_an_audit_that_failed(tmp_path, site, update, labels):
    path = tmp_path / labels
    if labels == "broken":
        path.write_text("1 2 cat")
    run(site(labels=str(path)), update, weights(update))
    (record,) = read_rounds(tmp_path / "r")
    assert str(path) in record["error"]


def test_labels_of_one_logit_are_read_in_either_form(tmp_path):
    audit = LeakageAudit("policy.toml", loss={"kind": "bce"})
    path = tmp_path / "labels.txt"
    for content, expected in (("1 0 1", [1, 0, 1]), ("0 1\n1 1\n", [[0, 1], [1, 1]])):
        path.write_text(content)
        assert audit._own_labels(str(path), 2).tolist() == expected
    with pytest.raises(UnreadableFile):
        audit._own_labels(str(path), 3)


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


@pytest.mark.usefixtures("unchecked")
def test_an_optimizer_that_cannot_be_read_is_told(tmp_path, site, update):
    run(site(training={"optimizer": "lion"}), update, weights(update))
    (record,) = read_rounds(tmp_path / "r")
    assert record["verdict"] == "failed"
    assert "optimizer 'lion' cannot be read" in record["error"]


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
