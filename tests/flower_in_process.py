"""Flower's messages and rounds in this process: no SuperLink, no Ray, no network."""

from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

try:  # from 1.3x on a message knows the process that it comes from
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    pass
else:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


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
