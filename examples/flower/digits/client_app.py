"""What a site runs: training, a defense, and an audit on either side of the defense."""

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from digits.task import fingerprint, network, partition, train
from labelleak.defenses import sparsify
from labelleak.federated import Policy
from labelleak.federated.flower import LeakageAudit, provide_labels
from labelleak.lab.datasets import load

CLIPPING_NORM = 1.0
DELTA = 1e-5

Next = Callable[[Message, Context], Message]


def audit_sent(message: Message, context: Context, call_next: Next) -> Message:
    """Audit what leaves; a site's own policy file decides, where its node names one."""
    private = context.run_config["defense"] == "local-dp"
    audit = LeakageAudit(
        Policy(records=records_folder(context)),
        label="to send",
        epsilon=float(context.run_config["epsilon"]) if private else None,
        delta=DELTA if private else None,
    )
    return audit(message, context, call_next)


def audit_trained(message: Message, context: Context, call_next: Next) -> Message:
    """Record what would have left without the defense."""
    policy = Policy(action="record", records=records_folder(context))
    return LeakageAudit(policy, label="trained")(message, context, call_next)


def defense(message: Message, context: Context, call_next: Next) -> Message:
    """The defense that the run is configured with."""
    config = context.run_config
    if message.metadata.message_type != "train" or config["defense"] == "none":
        return call_next(message, context)
    if config["defense"] == "local-dp":
        # One reply may differ from another by twice the norm that both are clipped to.
        noise = LocalDpMod(CLIPPING_NORM, 2 * CLIPPING_NORM, float(config["epsilon"]), DELTA)
        return noise(message, context, call_next)
    if config["defense"] == "sparsification":
        return sparsified(message, call_next(message, context), float(config["percent"]))
    raise ValueError(f"defense {config['defense']!r}: none, local-dp or sparsification")


def sparsified(message: Message, reply: Message, percent: float) -> Message:
    """Zero the smallest entries of each tensor's update."""
    if reply.has_content():
        before = message.content.array_records["arrays"].to_torch_state_dict()
        after = reply.content.array_records["arrays"].to_torch_state_dict()
        kept = sparsify({name: after[name] - before[name] for name in before}, percent)
        sent = {name: before[name] + update for name, update in kept.items()}
        reply.content["arrays"] = ArrayRecord(sent)
    return reply


def note_fingerprint(message: Message, context: Context, call_next: Next) -> Message:
    """Note at the site which weights are ready to leave; `run.py` looks for them at the server."""
    reply = call_next(message, context)
    if message.metadata.message_type == "train" and reply.has_content():
        site = context.node_config["partition-id"]
        path = Path(str(context.run_config["out"]), f"site-{site}.txt")
        number = int(str(message.content.config_records["config"]["server-round"]))
        with path.open("a") as file:
            file.write(f"{number} {fingerprint(reply.content.array_records['arrays'])}\n")
    return reply


def records_folder(context: Context) -> str:
    """Where the site's records go."""
    return str(Path(str(context.run_config["out"]), "records"))


app = ClientApp(mods=[audit_sent, note_fingerprint, defense, audit_trained])


@app.train()
def train_step(message: Message, context: Context) -> Message:
    """Take one step on a few of the site's digits."""
    torch.set_num_threads(1)
    config = message.content.config_records["config"]
    number, lr = int(str(config["server-round"])), float(str(config["lr"]))
    site, sites = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    own = partition(site, sites, float(context.run_config["alpha"]))
    seed = torch.Generator().manual_seed(1000 * site + number)
    taken = own[torch.randperm(len(own), generator=seed)[: int(context.run_config["batch-size"])]]
    inputs, labels = load("mnist-sample").batch(taken)
    provide_labels(labels)
    model = network()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss = train(model, inputs, labels, lr)
    metrics = MetricRecord({"loss": loss, "num-examples": len(taken)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
