"""What a hospital runs: one step of training a round, and the audit of what leaves."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from hospitals.task import admitted, network, train
from labelleak.federated.flower import LeakageAudit, provide_labels

app = ClientApp(mods=[LeakageAudit(loss="bce")])  # the audit


@app.train()
def train_step(message: Message, context: Context) -> Message:
    """Take one step on some of the hospital's patients."""
    config = message.content.config_records["config"]
    number, lr = int(str(config["server-round"])), float(str(config["lr"]))
    site = int(context.node_config["partition-id"])
    taken = int(context.node_config.get("patients", 48))
    inputs, labels = (values[:taken] for values in admitted(site, number))
    provide_labels(labels)  # so that the audit can say how much of it is right
    model = network(str(context.run_config["model"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss = train(model, inputs, labels, lr)
    metrics = MetricRecord({"loss": loss, "num-examples": taken})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
