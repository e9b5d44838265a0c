"""Run a Flower app in this process, one hospital after the other: no network, and no Ray."""

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

try:  # newer versions of Flower have a message know the process that it comes from
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    pass
else:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class InProcess(Grid):
    """Hands every message to its node's app."""

    def __init__(self, app: ClientApp, nodes: dict[int, Context]) -> None:
        self.app, self.nodes = app, nodes
        self.replies: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = [self.app(one, self.nodes[one.metadata.dst_node_id]) for one in messages]
        self.replies += replies
        return replies

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def run_app(
    client: ClientApp,
    server: ServerApp,
    nodes: Sequence[dict[str, Any]],
    run_config: dict[str, Any],
) -> tuple[RecordDict, list[Message]]:
    """Run the app; the server's state after it, and the replies that the server received.

    Args:
        client: The app of every node.
        server: The server's app.
        nodes: Configuration of each node.
        run_config: That of the run.
    """

    def context(node: int, config: dict[str, Any]) -> Context:
        return Context(1, node, config, RecordDict(), run_config)

    grid = InProcess(client, {n: context(n, config) for n, config in enumerate(nodes, start=100)})
    own = context(1, {})
    server(grid, own)
    return own.state, grid.replies
