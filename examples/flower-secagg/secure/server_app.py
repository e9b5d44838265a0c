"""What the server runs: SecAgg+, federated averaging, and the audit of all that it can see."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.common import FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from labelleak import LocalTraining
from labelleak.federated import Auditor, Occasion, Policy
from secure.task import RATE, network

SITES = 3

app = ServerApp()


class Audited(FedAvg):
    """Federated averaging that audits the aggregate: no update of a single site is ever here."""

    def __init__(self, auditor: Auditor, **settings: Any) -> None:
        super().__init__(**settings)
        self.auditor = auditor
        self.before = network().state_dict()

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """Average, and audit the average as the update of one client that has all the samples."""
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        if parameters is not None:
            after = self.named(parameters)
            occasion = Occasion(
                server_round, "aggregate", framework="flower", aggregate_of=len(results)
            )
            samples = sum(result.num_examples for _, result in results)
            told = LocalTraining(learning_rate=RATE, steps=1)
            self.auditor.audit_update(self.before, after, told, occasion, instances=samples)
            self.before = after
        return parameters, metrics

    def named(self, parameters: Parameters) -> dict[str, Tensor]:
        """The weights by name, in single precision as the network has them."""
        arrays = map(torch.from_numpy, parameters_to_ndarrays(parameters))
        return {
            name: array.to(value.dtype)
            for (name, value), array in zip(self.before.items(), arrays, strict=True)
        }


def watch(grid: Grid, arrived: list[int]) -> None:
    """Note how many plain arrays each reply holds; masked ones are no arrays but lists of bytes."""
    ask = grid.send_and_receive

    def send_and_receive(messages: Iterable[Message], **settings: Any) -> Iterable[Message]:
        replies = list(ask(messages, **settings))
        answered = [reply.content for reply in replies if reply.has_content()]
        arrived.extend(sum(map(len, content.array_records.values())) for content in answered)
        return replies

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds under secure aggregation."""
    torch.set_num_threads(1)
    out, rounds = Path(str(context.run_config["out"])), int(context.run_config["rounds"])
    arrived: list[int] = []
    watch(grid, arrived)
    auditor = Auditor(Policy(action="record", records=str(out / "server-records")))
    arrays = [value.numpy() for value in network().state_dict().values()]
    strategy = Audited(
        auditor,
        fraction_evaluate=0.0,
        min_fit_clients=SITES,
        min_available_clients=SITES,
        on_fit_config_fn=lambda number: {"lr": RATE, "server-round": number},
        initial_parameters=ndarrays_to_parameters(arrays),
    )
    legacy = LegacyContext(context, ServerConfig(num_rounds=rounds), strategy)
    secure = SecAggPlusWorkflow(num_shares=SITES, reconstruction_threshold=2, timeout=300)
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
    (out / "server.json").write_text(json.dumps({"arrays": arrived}))
