"""A strategy for Flower's servers: audits what arrives."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from labelleak.federated.auditor import Auditor
from labelleak.federated.contents import Contents
from labelleak.federated.flower.contents import contents_of
from labelleak.federated.flower.messages import (
    FRAMEWORK,
    Known,
    all_keys,
    arrays_in,
    check_content,
    refusal,
    update_in,
    weights_in,
)
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.policy import Policy
from labelleak.training import LocalTraining

# What an average of clients can say only if it is the same for all of them.
_ALIKE = ("optimizer", "learning_rate", "epochs", "momentum", "weight_decay", "proximal")

_OURS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class AuditStrategy(Strategy):
    """A strategy that audits every reply to a train message, then passes it on as it is.

    Wrap it around any other: ``AuditStrategy(FedAvg(...), policy)``. What else a reply holds, also
    to an evaluate message, is compared with the policy's allow-list. Under a refusing policy the
    server has the reply already: it is kept from the aggregate, as an error reply in its place.
    With secure aggregation the server sees the aggregate alone, and that is audited.

    Examples:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from labelleak.federated.flower import AuditStrategy
        >>> type(AuditStrategy(FedAvg()).strategy).__name__
        'FedAvg'
    """

    def __init__(
        self,
        strategy: Strategy,
        policy: Policy | str | Path | None = None,
        *,
        secure_aggregation: bool = False,
        model: nn.Module | None = None,
        head: str | None = None,
        label: str = "",
        training: LocalTraining | None = None,
        keys: Mapping[str, tuple[str, ...]] | None = None,
        run_config: Mapping[str, Any] | None = None,
        **knowledge: Any,
    ) -> None:
        """Wrap a strategy.

        Args:
            strategy: The strategy.
            policy: As of `LeakageAudit`, as are the following.
            secure_aggregation: Audit what `strategy` makes of all replies together, and none of
                them. It must be their average weighted by the number of samples, as FedAvg's.
            model: The network, for attacks that use all of it.
            head: Name of the final linear layer; None to find it.
            label: Where this strategy stands, for the records.
            training: What messages and configuration do not say of the local training.
            keys: Names of their entries where they differ from `KEYS`.
            run_config: The run's configuration, ``context.run_config``.
            **knowledge: See `Auditor`.

        Raises:
            UnreadableFile: The policy cannot be read.
            MissingKnowledge: The policy's attack needs the model, and there is none.
            ValueError: `keys` has a field that `KEYS` has not.
        """
        self.strategy = strategy
        self._auditor = Auditor(policy, model=model, head=head, **knowledge)
        self._secure, self._label = secure_aggregation, label
        self._known = Known(training or LocalTraining(), all_keys(keys), dict(run_config or {}))
        self._sent: dict[int, Message] = {}
        self._sent_to_evaluate: dict[int, Message] = {}
        # Bound now: `start` may put this object's own in their place.
        self._configure, self._aggregate = strategy.configure_train, strategy.aggregate_train
        self._configure_evaluate = strategy.configure_evaluate
        self._aggregate_evaluate = strategy.aggregate_evaluate

    def summary(self) -> None:
        """Log what the strategy is; see `flwr.serverapp.strategy.Strategy`, here and below."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass the strategy's messages on, and remember what was sent."""
        messages = list(self._configure(server_round, arrays, config, grid))
        self._sent = {message.metadata.dst_node_id: message for message in messages}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Audit each reply, or the aggregate, and let the strategy aggregate."""
        replies = list(replies)
        if not self._secure:
            # Those of one recipe and number of samples, which share virtual clients, in a row.
            order = sorted(range(len(replies)), key=lambda at: self._told_of(replies[at]))
            passed = {at: self._passed(server_round, replies[at]) for at in order}
            return self._aggregate(server_round, [passed[at] for at in range(len(replies))])
        arrays, metrics = self._aggregate(server_round, replies)
        if arrays is not None and not self._audit_aggregate(server_round, arrays, replies).send:
            arrays = None
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass the strategy's messages on, and remember what was sent."""
        messages = list(self._configure_evaluate(server_round, arrays, config, grid))
        self._sent_to_evaluate = {message.metadata.dst_node_id: message for message in messages}
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Look at what each reply holds, and let the strategy aggregate."""
        if not self._secure:
            replies = [self._looked_at(server_round, reply) for reply in replies]
        return self._aggregate_evaluate(server_round, replies)

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run all rounds; a strategy with a ``start`` of its own runs that one."""
        if type(self.strategy).start is Strategy.start:
            return super().start(*args, **kwargs)
        own = vars(self.strategy)
        own.update({name: getattr(self, name) for name in _OURS})
        try:
            return self.strategy.start(*args, **kwargs)
        finally:
            for name in _OURS:
                del own[name]

    def _passed(self, server_round: int, reply: Message) -> Message:
        """The reply after its audit, or the error in its place."""
        node = reply.metadata.src_node_id
        occasion = self._occasion(server_round, f"node-{node}", reply)
        sent = self._sent.get(node)
        try:
            if sent is None:
                raise ValueError(f"nothing was asked of node {node}")
            update = update_in(reply, arrays_in(sent), sent, self._known)
            contents = self._contents(reply, update.before)
        except Exception as problem:  # whatever a client sent
            decision = self._auditor.failed(problem, occasion)
        else:
            decision = self._auditor.audit_update(
                update.before,
                update.after,
                update.training,
                occasion,
                instances=update.instances,
                contents=contents,
            )
        return _kept(reply, decision, sent)

    def _told_of(self, reply: Message) -> str:
        """What a reply says of its training, to sort by; empty where it says nothing."""
        try:
            sent = self._sent[reply.metadata.src_node_id]
            return repr(self._known.training_of(sent, reply))
        except Exception:  # whatever a client sent
            return ""

    def _looked_at(self, server_round: int, reply: Message) -> Message:
        """A reply to an evaluate message, or the error in its place."""
        node = reply.metadata.src_node_id
        try:
            check_content(reply)
        except ValueError:  # an error goes on as it is
            return reply
        occasion = self._occasion(server_round, f"node-{node}", reply)
        decision = self._auditor.audit_message(self._contents(reply), occasion)
        return _kept(reply, decision, self._sent_to_evaluate.get(node))

    def _contents(self, reply: Message, before: Mapping[str, Any] | None = None) -> Contents:
        """What a reply holds beside the weights that are audited, if there are any."""
        classes = None if before is None else self._auditor.classes(before)
        allow = self._auditor.policy.allow
        return contents_of(reply, allow, classes, audited=before is not None)

    def _audit_aggregate(
        self, server_round: int, arrays: ArrayRecord, replies: list[Message]
    ) -> Decision:
        occasion = self._occasion(server_round, "aggregate", next(iter(replies), None))
        try:
            asked = [(self._sent[reply.metadata.src_node_id], reply) for reply in replies]
            asked = [(sent, reply) for sent, reply in asked if reply.has_content()]
            clients = [self._known.training_of(sent, reply) for sent, reply in asked]
            before = weights_in(arrays_in(asked[0][0]), "the message to the client")
            after = weights_in([dict(arrays)], "the aggregate", before)
            training, instances = _average(clients)
            occasion = replace(occasion, aggregate_of=len(clients))
        except Exception as problem:  # whatever the clients sent
            return self._auditor.failed(problem, occasion)
        return self._auditor.audit_update(before, after, training, occasion, instances=instances)

    def _occasion(self, server_round: int, client: str, reply: Message | None) -> Occasion:
        """What is written down; of an aggregate, with one of its replies."""
        occasion = Occasion(server_round, client, self._label, FRAMEWORK)
        if reply is None:
            return occasion
        about = reply.metadata
        return replace(occasion, run=str(about.run_id), task=about.message_type)


def _kept(reply: Message, decision: Decision | None, sent: Message | None) -> Message:
    """The reply, or the error in its place."""
    if decision is None or decision.send or sent is None or not reply.has_content():
        return reply
    return Message(refusal(decision), reply_to=sent)


def _average(clients: list[tuple[LocalTraining, int | None]]) -> tuple[LocalTraining, int]:
    """The clients' training as if one had all their samples, and the number of those.

    Their average, weighted by numbers of samples, moved as far as their average number of steps;
    each step together is on a batch of each client. It is exact where all take the same number.

    Args:
        clients: Recipe and number of samples of each.

    Raises:
        ValueError: The number of samples of a client is not known, or they trained in different
            ways.
        MissingKnowledge: The number of steps of a client is not known.
    """
    first = clients[0][0]
    for what in _ALIKE:
        if any(getattr(training, what) != getattr(first, what) for training, _ in clients):
            name = "learning rates" if what == "learning_rate" else what.replace("_", " ")
            raise ValueError(f"the clients' {name} differ")
    total, weighted = 0, 0
    for training, instances in clients:
        if instances is None:
            raise ValueError(
                "the numbers of local samples are not known: metrics lack num-examples"
            )
        total += instances
        weighted += instances * (training.resolved(instances).steps or 0)
    whole = max(1, round(weighted / total))
    rate = first.learning_rate
    if isinstance(rate, int | float):
        rate = rate * weighted / total / whole
    return replace(first, learning_rate=rate, batch_size=None, steps=whole), total
