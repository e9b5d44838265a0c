"""The example of secure aggregation in this process: SecAgg+ beside the audits."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Error, Message

from flower_in_process import InProcess, Site, context
from labelleak.federated import read_rounds

FOLDER = Path(__file__).parent.parent / "examples" / "flower-secagg"
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent / "flower"))


class Legacy(InProcess):
    """What SecAgg+'s workflow asks of a grid, too: the run, and messages of its own."""

    run = SimpleNamespace(run_id=1)

    def send_and_receive(self, messages, *, timeout=None):
        # Sites that change what they are sent must not change each other's.
        return [self._answer(deepcopy(message)) for message in messages]

    def _answer(self, message):
        try:
            (reply,) = super().send_and_receive([message])
        except ValueError as error:  # a SuperNode makes an error of an app's exception
            return Message(Error(2, str(error)), reply_to=message)
        return reply


def run_rounds(out, policies=(None, None, None)):
    from secure import client_app, server_app

    settings = {"out": str(out), "rounds": 2}
    sites = {}
    for site, policy in enumerate(policies):
        node = {"partition-id": site, "num-partitions": 3}
        if policy is not None:
            node["labelleak-policy"] = str(policy)
        sites[100 + site] = Site(client_app.app, context(100 + site, node, **settings))
    server_app.app(Legacy(sites), context(0, **settings))
    records = read_rounds(out / "records"), read_rounds(out / "server-records")
    return *records, json.loads((out / "server.json").read_text())


@pytest.mark.usefixtures("example")
def test_the_sites_see_their_updates_and_the_server_their_sum_alone(tmp_path):
    sites, server, seen = run_rounds(tmp_path)
    # Four stages in two rounds, three replies each, and not a plain array in any.
    assert seen == {"arrays": [0] * 24}
    assert [record["audit"]["score"]["accuracy"] for record in sites] == [1.0] * 6
    assert {record["label"] for record in sites} == {"unmasked"}
    for record in server:
        own = [r["audit"]["true_counts"] for r in sites if r["round"] == record["round"]]
        total = torch.tensor(own).sum(0)
        found = torch.tensor(record["audit"]["counts"])
        assert int(torch.minimum(total, found).sum()) >= 0.95 * 72
        assert (record["client"], record["aggregate_of"]) == ("aggregate", 3)
        # SecAgg+ rounds to a grid: that looks like a defense, and is none.
        assert record["verdict"] == "inconclusive"


@pytest.mark.usefixtures("example")
def test_a_site_that_refuses_drops_out_of_the_sum(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(f'action = "refuse"\nrecords = "{tmp_path / "records"}"\n')
    sites, server, _ = run_rounds(tmp_path, (None, None, policy))
    assert {r["client"] for r in sites if r["action"] == "refused"} == {"partition-2"}
    assert {record["aggregate_of"] for record in server} == {2}
    (first,) = (record for record in server if record["round"] == 1)
    own = [r["audit"]["true_counts"] for r in sites if (r["round"], r["action"]) == (1, "warned")]
    found = torch.tensor(first["audit"]["counts"])
    assert int(torch.minimum(torch.tensor(own).sum(0), found).sum()) >= 0.95 * 48


@pytest.mark.usefixtures("example")
def test_the_script_reports_and_sees_a_plain_array(tmp_path, capsys):
    import secagg

    run_rounds(tmp_path)
    assert secagg.report(tmp_path) == []
    assert "restored from the aggregate" in capsys.readouterr().out
    (tmp_path / "server.json").write_text('{"arrays": [0, 6]}')
    assert secagg.report(tmp_path) == ["6 plain arrays arrived in a reply"]
