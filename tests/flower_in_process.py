"""Flower's messages and rounds in this process: no SuperLink, no Ray, no network."""

from collections import OrderedDict
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from labelleak.federated import Policy, train_locally
from labelleak.federated.flower import provide_labels
from labelleak.training import LocalTraining

try:  # from 1.3x on a message knows the process that it comes from
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    pass
else:
    try:
        TaskIdentity.run_id  # noqa: B018  # a process of Flower has its own
    except RuntimeError:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

CLASSES, RATE, SAMPLES = 5, 0.1, 8


class Site(NamedTuple):
    """A client: its app and its context."""

    app: object
    context: Context


def context(node=7, node_config=None, **run_config):
    config = {name.replace("_", "-"): value for name, value in run_config.items()}
    return Context(
        run_id=1,
        node_id=node,
        node_config={} if node_config is None else node_config,
        state=RecordDict(),
        run_config=config,
    )


def instruction(state, kind="train", node=7, **config):
    config = {name.replace("_", "-"): value for name, value in config.items()}
    content = RecordDict({"arrays": ArrayRecord(state), "config": ConfigRecord(config)})
    return Message(content, node, kind)


def reply_to(message, state=None, **metrics):
    metrics = {name.replace("_", "-"): value for name, value in metrics.items()}
    records = {"metrics": MetricRecord(metrics)}
    if state is not None:
        records["arrays"] = ArrayRecord(state)
    return Message(RecordDict(records), reply_to=message)


def made_update(**buffers):
    """A model with BatchNorm, and one step on inputs that differ so little that iLRG is right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = OrderedDict(
            body=nn.Linear(6, 16), norm=nn.BatchNorm1d(16), act=nn.ReLU(), fc=nn.Linear(16, CLASSES)
        )
        model = nn.Sequential(layers).eval()
    for name, value in buffers.items():
        model.register_buffer(name, value)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    inputs = 1 + 0.02 * torch.randn(SAMPLES, 6, generator=generator)
    found = train_locally(model, inputs, labels, LocalTraining(learning_rate=RATE), classes=CLASSES)
    # What BatchNorm counts moves, too: it is no part of the gradient.
    found.after["norm.num_batches_tracked"] += 1
    found.after["norm.running_mean"] += 5
    return found, labels


def made_policy(folder, action="warn", **fields):
    """A policy whose records go below a folder."""
    return Policy(action, records=str(folder / "r"), **{"attack": "ilrg", **fields})


def answer(audit, update, *, message=None, after=None, given=None, **metrics):
    """One training under an audit: the app's reply, and what leaves."""
    found, labels = update
    if message is None:
        message = instruction(found.before, lr=RATE, server_round=3)
    made = []

    def app(message, _):
        provide_labels(labels if given is None else given)
        metrics.setdefault("num_examples", SAMPLES)
        made.append(reply_to(message, found.after if after is None else after, **metrics))
        return made[0]

    left = audit(message, context(batch_size=SAMPLES), app)
    return made[0], left


def wire(message):
    """The bytes that Flower sends of a message, or of anything in it."""
    return message.deflate() + b"".join(map(wire, (message.children or {}).values()))


class InProcess(Grid):
    """Hands each message to its site's app, one after the other."""

    def __init__(self, sites):
        self.sites = sites

    def get_node_ids(self):
        return list(self.sites)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            site = self.sites[message.metadata.dst_node_id]
            replies.append(site.app(message, site.context))
        return replies

    def set_run(self, run_id): ...

    @property
    def run(self): ...

    def create_message(self, *_, **__): ...

    def push_messages(self, messages): ...

    def pull_messages(self, message_ids): ...
