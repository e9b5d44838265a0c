"""What the server runs: federated averaging, each reply audited, and a report of what arrived."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits.task import accuracy, fingerprint, network
from labelleak.federated import Policy
from labelleak.federated.flower import AuditStrategy

app = ServerApp()


class Reporting(FedAvg):
    """Federated averaging that notes what arrived: weights by their fingerprint, and errors."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.arrived: dict[int, list[str]] = {}
        self.errors: dict[int, list[str]] = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the replies, and average them."""
        replies = list(replies)
        self.arrived[server_round] = [
            fingerprint(reply.content.array_records["arrays"])
            for reply in replies
            if reply.has_content()
        ]
        self.errors[server_round] = [
            f"{reply.error.code}: {reply.error.reason}" for reply in replies if reply.has_error()
        ]
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds with three sites."""
    torch.set_num_threads(1)
    config = context.run_config
    out = Path(str(config["out"]))
    report = Reporting(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    policy = Policy(action="record", records=str(out / "server-records"))
    strategy = AuditStrategy(report, policy, run_config=config)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        train_config=ConfigRecord({"lr": float(config["lr"])}),
        timeout=120.0,
        evaluate_fn=lambda _, arrays: MetricRecord({"accuracy": accuracy(arrays)}),
    )
    content = {
        "arrived": report.arrived,
        "errors": report.errors,
        "accuracy": {
            number: metrics["accuracy"]
            for number, metrics in result.evaluate_metrics_serverapp.items()
        },
    }
    (out / "server.json").write_text(json.dumps(content, indent=2))
