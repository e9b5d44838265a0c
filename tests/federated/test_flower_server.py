import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy

from flower_in_process import InProcess, Site, context, reply_to
from labelleak.federated import Policy, read_rounds, train_locally
from labelleak.federated.flower import AuditStrategy
from labelleak.federated.flower.server import _average
from labelleak.training import LocalTraining

CLASSES, RATE, NODES = 5, 0.1, (11, 12, 13)


# The run-time checks of types draw from Python's generator, which decides the order of the sites.
pytestmark = pytest.mark.usefixtures("unchecked")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, CLASSES)
        )


def labels_of(node, samples=8):
    return torch.randint(CLASSES, (samples,), generator=torch.Generator().manual_seed(node))


def site(node, answer=None, samples=8, evaluated=None):
    """One step on inputs that differ little: iLRG is right then."""
    app = ClientApp()

    @app.train()
    def train(message, _):
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        inputs = 1 + 0.02 * torch.randn(samples, 6, generator=torch.Generator().manual_seed(node))
        training = LocalTraining(learning_rate=RATE)
        found = train_locally(model, inputs, labels_of(node, samples), training, classes=CLASSES)
        if answer is not None:
            return answer(message, found.after)
        return reply_to(message, found.after, num_examples=samples)

    @app.evaluate()
    def evaluate(message, _):
        return (evaluated or measured)(message)

    return Site(app, context(node))


def measured(message):
    return reply_to(message, num_examples=8, accuracy=0.5)


def grid(**others):
    others = {int(name[1:]): answer for name, answer in others.items()}
    return InProcess({node: site(node, others.get(node)) for node in NODES})


@pytest.fixture
def policy(tmp_path):
    def make(action="record", **fields):
        fields = {"attack": "ilrg", "records": str(tmp_path / "r"), **fields}
        return Policy(action, **fields)

    return make


def run(strategy, sites=None, rounds=2):
    random.seed(0)  # decides the order of the sites, and with it how their sum is rounded
    return strategy.start(
        sites or grid(),
        ArrayRecord(network().state_dict()),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": RATE}),
    )


def audited(strategy, policy, **options):
    return AuditStrategy(strategy, policy, run_config={"batch-size": 8}, **options)


def weights(result):
    return {name: array.data for name, array in result.arrays.items()}


def test_every_reply_is_audited_and_the_result_is_the_same(policy, tmp_path):
    plain = run(FedAvg(min_available_nodes=3))
    found = run(audited(FedAvg(min_available_nodes=3), policy()))
    assert weights(found) == weights(plain)
    assert found.train_metrics_clientapp == plain.train_metrics_clientapp
    assert found.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp
    records = read_rounds(tmp_path / "r")
    assert {(r["round"], r["client"]) for r in records} == {
        (number, f"node-{node}") for number in (1, 2) for node in NODES
    }
    for record in records:
        counts = torch.bincount(labels_of(int(record["client"][5:])), minlength=CLASSES)
        assert record["audit"]["counts"] == counts.tolist()
        assert record["action"] == "sent"


def nan(message, after):
    after["2.weight"][0, 0] = torch.nan
    return reply_to(message, after, num_examples=8)


def other_shape(message, after):
    return reply_to(message, {**after, "2.weight": torch.zeros(2, 2)}, num_examples=8)


def missing_key(message, after):
    del after["2.weight"]
    return reply_to(message, after, num_examples=8)


def no_arrays(message, _):
    return reply_to(message, num_examples=8)


def nothing(message, _):
    return Message(RecordDict(), reply_to=message)


def an_error(message, _):
    return Message(Error(2, "no data"), reply_to=message)


@pytest.mark.parametrize("answer", [nan, other_shape, missing_key, no_arrays, nothing, an_error])
def test_a_refusing_policy_keeps_malformed_replies_from_the_aggregate(policy, tmp_path, answer):
    # A server has no labels to measure accuracy by.
    found = run(audited(FedAvg(), policy("refuse", measure="exact")), grid(n12=answer))
    others = InProcess({node: site(node) for node in NODES if node != 12})
    assert weights(found) == weights(run(FedAvg(), others))
    failed = [r for r in read_rounds(tmp_path / "r") if r["verdict"] == "failed"]
    assert [r["client"] for r in failed] == ["node-12", "node-12"]


@pytest.mark.parametrize("answer", [nan, an_error])
def test_what_the_strategy_takes_is_passed_on_as_it_is(policy, tmp_path, answer):
    found = run(audited(FedAvg(), policy("warn")), grid(n12=answer), rounds=1)
    assert weights(found) == weights(run(FedAvg(), grid(n12=answer), rounds=1))
    assert sum(r["verdict"] == "failed" for r in read_rounds(tmp_path / "r")) == 1


def test_what_the_strategy_does_not_take_is_its_business(policy, tmp_path):
    with pytest.raises(InconsistentMessageReplies):
        run(audited(FedAvg(), policy("warn")), grid(n12=missing_key))
    assert sum(r["verdict"] == "failed" for r in read_rounds(tmp_path / "r")) == 1


def labeled(message, after):
    return reply_to(message, after, num_examples=8, labels=3)


def test_what_is_beside_the_weights_is_looked_at(policy, tmp_path):
    found = run(audited(FedAvg(), policy("refuse", measure="exact")), grid(n12=labeled), rounds=1)
    failed = [r for r in read_rounds(tmp_path / "r") if r["verdict"] == "failed"]
    assert [(r["client"], r["unaudited"]) for r in failed] == [
        ("node-12", ["metrics/labels (a number)"])
    ]
    assert {(r["run"], r["task"]) for r in read_rounds(tmp_path / "r")} == {("1", "train")}
    assert "labels" not in found.train_metrics_clientapp.get(1, {})


def with_weights(message):
    return reply_to(message, network().state_dict(), num_examples=8, accuracy=0.25)


@pytest.mark.parametrize(("action", "accuracy"), [("record", 0.4166667), ("refuse", 0.5)])
def test_replies_to_evaluate_are_looked_at(policy, tmp_path, action, accuracy):
    sites = {node: site(node, evaluated=with_weights if node == 12 else None) for node in NODES}
    found = run(audited(FedAvg(), policy(action, threshold=1.0)), InProcess(sites), rounds=1)
    assert found.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(accuracy)
    (record,) = [r for r in read_rounds(tmp_path / "r") if r["task"] == "evaluate"]
    assert (record["client"], record["verdict"]) == ("node-12", "failed")
    assert record["unaudited"] == ["arrays (a record of 4 arrays)"]


def test_a_reply_that_nobody_asked_for(policy, tmp_path):
    strategy = audited(FedAvg(), policy("refuse"))
    arrays = ArrayRecord(network().state_dict())
    (first, *_) = strategy.configure_train(1, arrays, ConfigRecord({"lr": RATE}), grid())
    reply = reply_to(first, network().state_dict(), num_examples=8)
    reply.metadata.__dict__["_src_node_id"] = 99
    strategy.aggregate_train(1, [reply])
    (record,) = read_rounds(tmp_path / "r")
    assert "nothing was asked of node 99" in record["error"]


def test_secure_aggregation_is_audited_as_a_whole(policy, tmp_path):
    plain = run(FedAvg())
    found = run(audited(FedAvg(), policy(), secure_aggregation=True))
    assert weights(found) == weights(plain)
    first, second = read_rounds(tmp_path / "r")
    counts = sum(torch.bincount(labels_of(node), minlength=CLASSES) for node in NODES)
    assert (first["client"], first["aggregate_of"]) == ("aggregate", 3)
    assert (first["round"], second["round"]) == (1, 2)
    assert first["audit"]["counts"] == counts.tolist()


def test_an_average_of_clients_of_different_size_is_put_to_scale(policy, tmp_path):
    # Two clients of one step, one of two: the average moved 1.5 steps, weighted by samples.
    sites = InProcess({11: site(11), 12: site(12), 13: site(13, samples=16)})
    run(audited(FedAvg(), policy(), secure_aggregation=True), sites, rounds=1)
    source = read_rounds(tmp_path / "r")[0]["audit"]["source"]
    training = source["training"]
    assert training["steps"] == 2
    assert training["learning_rate"] * training["steps"] == pytest.approx(RATE * 1.5)
    assert source["instances"] == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 0.2), ("epochs", 2), ("momentum", 0.5), ("proximal", 0.1)],
)
def test_clients_that_trained_in_different_ways_have_no_average(field, value):
    training = LocalTraining(learning_rate=RATE, batch_size=8)
    assert _average([(training, 16), (training, 16)])[1] == 32
    with pytest.raises(ValueError, match=f"{field[:5]}.*differ"):
        _average([(training, 16), (replace(training, **{field: value}), 16)])


def test_an_aggregate_may_be_refused(policy, tmp_path):
    found = run(audited(FedAvg(), policy("refuse"), secure_aggregation=True))
    assert not found.arrays
    assert {r["action"] for r in read_rounds(tmp_path / "r")} == {"refused"}


def test_an_aggregate_of_an_unknown_number_of_samples_is_flagged(policy, tmp_path):
    def uncounted(message, after):
        return reply_to(message, after, weight=1.0)

    strategy = FedAvg(weighted_by_key="weight", fraction_evaluate=0.0)
    sites = grid(n11=uncounted, n12=uncounted, n13=uncounted)
    run(audited(strategy, policy(), secure_aggregation=True), sites, rounds=1)
    (record,) = read_rounds(tmp_path / "r")
    assert "metrics lack num-examples" in record["error"]


class Checkpointing(FedAvg):
    """A strategy with a ``start`` of its own, as Flower's documentation shows."""

    def start(self, *args, **kwargs):
        self.started = True
        return super().start(*args, **kwargs)


def test_a_start_of_its_own_is_kept(policy, tmp_path):
    strategy = Checkpointing()
    found = run(audited(strategy, policy()))
    assert strategy.started
    assert weights(found) == weights(run(FedAvg()))
    assert len(read_rounds(tmp_path / "r")) == 6
    # And it is itself again afterward.
    run(strategy)
    assert len(read_rounds(tmp_path / "r")) == 6


def test_inside_another_wrapper(policy, tmp_path):
    strategy = audited(FedAvg(), policy())
    run(DifferentialPrivacyServerSideFixedClipping(strategy, 0.1, 1.0, 3), rounds=1)
    assert len(read_rounds(tmp_path / "r")) == 3


class Own(Strategy):
    """Notes what it is asked."""

    def __init__(self):
        self.asked = []

    def configure_train(self, *args):
        self.asked.append(args)
        return []

    def aggregate_train(self, *args):
        self.asked.append(args)
        return None, MetricRecord()

    def configure_evaluate(self, *args):
        self.asked.append(args)
        return []

    def aggregate_evaluate(self, *args):
        self.asked.append(args)
        return MetricRecord()

    def summary(self):
        self.asked.append(())


def test_everything_reaches_the_strategy(policy):
    own, arrays, config = Own(), ArrayRecord(), ConfigRecord()
    strategy = AuditStrategy(own, policy(), training=LocalTraining(learning_rate=RATE))
    strategy.summary()
    strategy.configure_train(1, arrays, config, grid())
    strategy.aggregate_train(1, iter([]))
    strategy.configure_evaluate(1, arrays, config, grid())
    strategy.aggregate_evaluate(1, [])
    assert [len(args) for args in own.asked] == [0, 4, 2, 4, 2]
    assert own.asked[2] == (1, [])
    assert deepcopy(own.asked[1][2]) == config
