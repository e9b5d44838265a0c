"""What a site runs: training, the audit of what it gives away, and around both the mask."""

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

from labelleak import LocalTraining
from labelleak.federated import Policy
from labelleak.federated.flower import LeakageAudit, provide_labels
from secure.task import SAMPLES, batch, network, train

Next = Callable[[Message, Context], Message]


def named(message: Message, context: Context, call_next: Next) -> Message:
    """Give the arrays, of which SecAgg+ sends a list, the names of the network's tensors."""
    arrays = message.content.array_records["fitins.parameters"]
    names = network().state_dict()
    message.content["fitins.parameters"] = ArrayRecord(
        dict(zip(names, arrays.values(), strict=True))
    )
    return call_next(message, context)


def audit(message: Message, context: Context, call_next: Next) -> Message:
    """Audit the update as it is before the mask; a site's own policy file may decide."""
    policy = Policy(records=str(Path(str(context.run_config["out"]), "records")))
    told = LocalTraining(batch_size=SAMPLES, steps=1)
    return LeakageAudit(policy, label="unmasked", training=told)(message, context, call_next)


# The first mod is the outermost. SecAgg+ hands on only the message that asks for the weights, and
# masks what comes back: an audit in front of it would look at random numbers.
app = ClientApp(mods=[secaggplus_mod, named, audit])


@app.train()
def train_step(message: Message, context: Context) -> Message:
    """Take one step, and answer in the records that SecAgg+ knows."""
    torch.set_num_threads(1)
    number = int(str(message.content.config_records["fitins.config"]["server-round"]))
    inputs, labels = batch(int(context.node_config["partition-id"]), number)
    provide_labels(labels)
    model = network()
    arrays = message.content.array_records["fitins.parameters"]
    model.load_state_dict({name: torch.tensor(array.numpy()) for name, array in arrays.items()})
    train(model, inputs, labels)
    content = RecordDict()
    content["fitres.parameters"] = ArrayRecord(model.state_dict())
    content["fitres.num_examples"] = MetricRecord({"num_examples": SAMPLES})
    content["fitres.metrics"] = ConfigRecord({})
    content["fitres.status"] = ConfigRecord({"code": 0, "message": "Success"})
    return Message(content, reply_to=message)
