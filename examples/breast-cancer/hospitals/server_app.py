"""What the server runs: federated averaging of what the hospitals send."""

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from hospitals.task import accuracy, network

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; the accuracy of the last model goes into the state of the run."""
    config = context.run_config
    model = network(str(config["model"]))
    result = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3).start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        train_config=ConfigRecord({"lr": float(config["lr"])}),
        evaluate_fn=lambda _, arrays: MetricRecord({"accuracy": accuracy(model, arrays)}),
    )
    evaluated = result.evaluate_metrics_serverapp
    context.state["last"] = evaluated[max(evaluated)]
