"""A strategy whose audits simulate clients: once for all of a round who have a recipe in common."""

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flower_in_process import InProcess, Site, context, reply_to
from labelleak import Auxiliary, LocalTraining
from labelleak.federated import Policy, read_rounds, train_locally
from labelleak.federated.flower import AuditStrategy
from synthetic import rng

CLASSES, INPUTS, RATE = 4, 6, 0.1
SAMPLES = {11: 20, 12: 40, 13: 20, 14: 40}
MEANS = 2 * torch.randn(CLASSES, INPUTS, generator=rng(0))

# The run-time checks of types draw from Python's generator, which decides the order of the sites.
pytestmark = pytest.mark.usefixtures("unchecked")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.nn.Sequential(
            torch.nn.Linear(INPUTS, 8), torch.nn.ReLU(), torch.nn.Linear(8, CLASSES)
        )


def samples(labels, seed):
    return MEANS[labels] + torch.randn(len(labels), INPUTS, generator=rng(seed))


def site(node):
    app = ClientApp()

    @app.train()
    def train(message, _):
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        labels = torch.randint(CLASSES, (SAMPLES[node],), generator=rng(node))
        training = LocalTraining(learning_rate=RATE, batch_size=10)
        inputs = samples(labels, node)
        update = train_locally(model, inputs, labels, training, classes=CLASSES)
        return reply_to(message, update.after, num_examples=SAMPLES[node])

    return Site(app, context(node))


class Watched(FedAvg):
    """Notes the order in which replies reach it."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.order = [reply.metadata.src_node_id for reply in replies]
        return super().aggregate_train(server_round, replies)


def test_clients_of_one_recipe_share_what_is_simulated_and_keep_their_order(tmp_path, monkeypatch):
    labels = torch.arange(CLASSES).repeat_interleave(20)
    strategy = Watched(fraction_evaluate=0.0, min_available_nodes=4)
    audited = AuditStrategy(
        strategy,
        Policy("record", attack="virtual", time_limit=1e-9, records=str(tmp_path / "r")),
        model=network(),
        auxiliary=Auxiliary(samples(labels, 2), labels),
        training=LocalTraining(batch_size=10, momentum=0.0, optimizer="sgd"),
    )
    audit, seen = audited._auditor.audit_update, []

    def noted(*args, instances, **options):
        decision = audit(*args, instances=instances, **options)
        seen.append((instances, len(audited._auditor._of_attack["shared"].pools)))
        return decision

    monkeypatch.setattr(audited._auditor, "audit_update", noted)
    sent = []
    configure = strategy.configure_train

    def noted_configure(*args):
        messages = list(configure(*args))
        sent.extend(message.metadata.dst_node_id for message in messages)
        return messages

    monkeypatch.setattr(audited, "_configure", noted_configure)
    audited.start(
        InProcess({node: site(node) for node in SAMPLES}),
        ArrayRecord(network().state_dict()),
        num_rounds=1,
        train_config=ConfigRecord({"lr": RATE}),
    )
    # The time is up at once: the first of a recipe has the fewest that there must be, no other any.
    assert seen == [(20, 12), (20, 12), (40, 12), (40, 12)]
    assert strategy.order == sent
    records = read_rounds(tmp_path / "r")
    assert {record["audit"]["attack"] for record in records} == {"virtual"}
    assert all(record["known"]["rounds"] == [1] for record in records)
