"""A mod for Flower's clients: audits the weights that are about to leave."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import Array, Context, Error, Message
from torch import Tensor, nn

from labelleak.errors import LabelLeakError
from labelleak.federated.auditor import Auditor
from labelleak.federated.contents import Contents
from labelleak.federated.flower.contents import Answer, contents_of
from labelleak.federated.flower.messages import (
    FRAMEWORK,
    REFUSALS,
    REFUSED,
    Known,
    all_keys,
    arrays_in,
    check_content,
    is_train,
    refusal,
    round_of,
    update_in,
    weights_in,
)
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.policy import Policy, read_policy
from labelleak.metrics import counts_of
from labelleak.observation import Auxiliary
from labelleak.restoration import Flag
from labelleak.training import LocalTraining

POLICY_KEY = "labelleak-policy"
"""Key of a node's configuration that names the site's own policy file."""

_NO_TEXT = "the app failed; the site's records say why"
_RAISED = 2  # Flower's code of an app that raised an exception
_ERROR_CODES = range(256)

_log = logging.getLogger(__name__)

_Given = TypeVar("_Given")

# What the training that goes on provides; the lists are the outermost audit's, and gone after it.
_labels: ContextVar[list[Tensor] | None] = ContextVar("labels", default=None)
_auxiliary: ContextVar[list[Auxiliary] | None] = ContextVar("auxiliary", default=None)


def provide_labels(labels: Tensor | Iterable[Any]) -> None:
    """Tell the audits around a training function the site's own labels, to score against.

    To be called inside the function that handles a train message. They stay in the memory of this
    process until that function's message is answered, and are no part of any message. Their counts
    go into the site's file of records. Without an audit nothing happens.

    Args:
        labels: Class indices of all local samples that take part in this round, each once however
            many the epochs, shape (samples,); of a sampler with replacement one per draw. Or zeros
            and ones for every label, a tensor of shape (samples, labels). A second call replaces
            the first.

    Raises:
        ValueError: They are no integers.

    Examples:
        >>> import torch
        >>> from labelleak.federated.flower import provide_labels
        >>> provide_labels(torch.tensor([0, 1, 1]))  # outside an audit nothing happens
    """
    if (held := _labels.get()) is None:
        return
    if isinstance(labels, Tensor):
        given = labels
        if given.is_floating_point() and bool((given == given.round()).all()):
            given = given.long()  # as a loss with a sigmoid takes them
    else:
        listed = list(labels)
        given = torch.tensor([int(label) for label in listed])
        if given.tolist() != listed:
            raise ValueError("the labels provided are no class indices: integers are needed")
    given = given if given.ndim == 2 else given.reshape(-1)
    held[:] = [given.detach().cpu().clone()]


def provide_auxiliary(inputs: Tensor, labels: Tensor) -> None:
    """Lend the audits around a training function samples of the kind that a server could have.

    The site's own validation split, say: with samples of the clients' kind a server restores far
    more. To be called as `provide_labels` is. The samples stay in the memory of this process until
    the message is answered, and are no part of any message or record. Attacks that make use of them
    need the model as well: ``LeakageAudit(model=...)``.

    Args:
        inputs: What the model takes in, preprocessed as in training, shape (samples, ...). None of
            them should be trained on.
        labels: Their classes, integers, shape (samples,).

    Raises:
        InvalidObservation: They do not belong together, or an input is NaN or infinite.

    Examples:
        >>> import torch
        >>> from labelleak.federated.flower import provide_auxiliary
        >>> provide_auxiliary(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    """
    given = Auxiliary(inputs.detach(), labels.detach())
    if (held := _auxiliary.get()) is not None:
        held[:] = [given]


class LeakageAudit:
    """A client mod that audits the weights which are about to leave: ``ClientApp(mods=[...])``.

    For each message of type ``train`` it compares the weights received with those of the reply,
    restores the labels as the server could, scores them against `provide_labels`, writes a record,
    and does what the policy says. A refused reply becomes an `flwr.app.Error` of code `REFUSED`.
    What else a reply holds, to any type of message, is compared with the policy's allow-list. Under
    a refusing policy a reply leaves as a new message of what was looked at, and an error or an
    exception of the app loses its text; otherwise replies pass as they are. The order of mods
    decides what is seen: the first one in the list sees what is sent, the last one what the app
    returned.

    A site overrules the policy by a file of its own in the node's configuration
    (``flower-supernode --node-config 'labelleak-policy="/etc/labelleak.toml"'``), read anew in
    every round. The outermost audit obeys it; one inside another records only. Where it cannot be
    read, the site neither trains nor sends.

    Examples:
        >>> from labelleak import LocalTraining
        >>> from labelleak.federated.flower import LeakageAudit
        >>> audit = LeakageAudit(training=LocalTraining(batch_size=32, momentum=0.9))
        >>> callable(audit)
        True
    """

    def __init__(
        self,
        policy: Policy | str | Path | None = None,
        *,
        model: nn.Module | None = None,
        head: str | None = None,
        label: str = "",
        training: LocalTraining | None = None,
        keys: Mapping[str, tuple[str, ...]] | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        share: bool = False,
        **knowledge: Any,
    ) -> None:
        """Take in what holds for all rounds.

        Args:
            policy: The policy or its file; None for the default one, which records and warns.
            model: The network, for attacks that use all of it; see `Auditor`.
            head: Name of the final linear layer; None to find it.
            label: Where among the mods this is, ``"before noise"`` say.
            training: What neither messages nor the run's configuration say of the local training:
                ``LocalTraining(batch_size=32, momentum=0.9)``.
            keys: Names of their entries where they differ from `KEYS`, field by field.
            epsilon: Of the differential privacy of one reply here, for the record.
            delta: The same.
            share: Add accuracy and flags to the metrics of the reply, where it has one record of
                them; counts are never sent.
            **knowledge: See `Auditor`.

        Raises:
            UnreadableFile: The policy cannot be read.
            MissingKnowledge: The policy's attack needs the model, and there is none.
            ValueError: `keys` has a field that `KEYS` has not.
        """
        self._settings: dict[str, Any] = {"model": model, "head": head, **knowledge}
        self._auditor = Auditor(policy, **self._settings)
        self._auditors = {self._auditor.policy: self._auditor}
        self._label, self._share = label, share
        self._epsilon, self._delta = epsilon, delta
        self._training, self._keys = training or LocalTraining(), all_keys(keys)

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Answer a message, as Flower asks a mod to.

        Args:
            message: The message received.
            context: Of the client.
            call_next: The mods further in, and the app.

        Returns:
            Their reply as it is, or the error that is sent in its place.
        """
        occasion = Occasion(
            round_of(message),
            _client_name(context),
            self._label,
            FRAMEWORK,
            self._epsilon,
            self._delta,
            run=str(message.metadata.run_id),
            task=message.metadata.message_type,
        )
        answer = Answer(message)
        try:
            auditor = self._auditor_for(context, inside_another=_labels.get() is not None)
        except LabelLeakError as error:
            refusing = Policy(action="refuse", records=self._auditor.policy.records)
            return answer.error(refusal(Auditor(refusing).failed(error, occasion)))
        # An app may change the message; the arrays themselves it cannot.
        asked = _Asked(auditor, message, context, arrays_in(message), answer, occasion)
        with _holding(_labels) as labels, _holding(_auxiliary) as auxiliary:
            try:
                reply = call_next(message, context)
            except Exception as error:
                if not asked.refusing:
                    raise
                # Flower would send its text.
                _log.exception("the app failed")
                auditor.failed(f"the app raised {type(error).__name__}: {error}", occasion)
                return answer.error(Error(_RAISED, _NO_TEXT))
            return self._outcome(asked, *self._audit(asked, reply, labels, auxiliary))

    def _audit(
        self,
        asked: "_Asked",
        reply: Message,
        labels: list[Tensor],
        auxiliary: list[Auxiliary],
    ) -> tuple[Message, Decision | None]:
        """The reply, made anew under a refusing policy, and what becomes of it.

        There is no decision where there is nothing to write down.
        """
        auditor, occasion = asked.auditor, asked.occasion
        try:
            check_content(reply)
            problem = asked.answer.metadata_problem(reply)
            if asked.refusing:
                # What is looked at is what leaves, whatever the app still holds of its own.
                reply = asked.answer.rebuilt(reply)
            contents = asked.contents(reply, [] if problem is None else [problem])
        except Exception as error:  # whatever the app sent
            return reply, auditor.failed(error, occasion)
        if not is_train(occasion.task):
            return reply, auditor.audit_message(contents, occasion)
        try:
            known = Known(self._training, self._keys, asked.context.run_config)
            update = update_in(reply, asked.received, asked.message, known)
            counts = _counts(labels[0], auditor.classes(update.before)) if labels else None
        except Exception as error:  # whatever the app sent
            return reply, auditor.failed(error, occasion, contents)
        decision = auditor.audit_update(
            update.before,
            update.after,
            update.training,
            occasion,
            instances=update.instances,
            true_counts=counts,
            auxiliary=auxiliary[0] if auxiliary else None,
            contents=contents,
        )
        return reply, decision

    def _outcome(self, asked: "_Asked", reply: Message, decision: Decision | None) -> Message:
        """What leaves: the reply, or an error in its place."""
        if asked.refusing and type(reply) is Message and reply.has_error():
            return asked.answer.error(_plain(reply.error))
        if decision is not None and not decision.send:
            return asked.answer.error(refusal(decision))
        if self._share and is_train(asked.occasion.task) and type(reply) is Message:
            self._tell(decision, reply)
        return reply

    def _auditor_for(self, context: Context, inside_another: bool) -> Auditor:
        path = context.node_config.get(POLICY_KEY)
        if path is None:
            return self._auditor
        policy = read_policy(str(path))
        if inside_another:  # what it sees does not leave as it is
            policy = replace(policy, action="record")
        if policy not in self._auditors:
            self._auditors[policy] = Auditor(policy, **self._settings)
        return self._auditors[policy]

    def _tell(self, decision: Decision | None, reply: Message) -> None:
        """Add the score to the metrics; always the same entries, as strategies demand."""
        records = list(reply.content.metric_records.values()) if reply.has_content() else []
        if len(records) != 1:
            _log.warning("the reply has %d records of metrics: nothing shared", len(records))
            return
        audit = {} if decision is None else decision.record.audit or {}
        score = audit.get("score") or {}
        raised = {flag["name"] for flag in audit.get("flags", ())}
        prefix = f"labelleak-{self._label}-" if self._label else "labelleak-"
        accuracy = score.get("accuracy")  # None where the attack restores no counts
        records[0][f"{prefix}accuracy"] = math.nan if accuracy is None else float(accuracy)
        for name in (flag.name.lower() for flag in Flag):
            records[0][f"{prefix}{name}"] = int(name in raised)


@dataclass(frozen=True)
class _Asked:
    """A message and all that was known before the app had it."""

    auditor: Auditor
    message: Message
    context: Context
    received: list[dict[str, Array]]
    answer: Answer
    occasion: Occasion

    @property
    def refusing(self) -> bool:
        """Whether the policy lets nothing leave that it does not allow."""
        return self.auditor.policy.action == "refuse"

    def contents(self, reply: Message, problems: list[str]) -> Contents:
        """What a reply holds beside the weights."""
        allow = self.auditor.policy.allow
        audited = is_train(self.occasion.task)
        return contents_of(reply, allow, self._classes(), audited=audited, problems=problems)

    def _classes(self) -> int | None:
        try:
            return self.auditor.classes(weights_in(self.received, "the message to the client"))
        except Exception:  # whatever the server sent
            return None


def _plain(error: Error) -> Error:
    """An error without the app's text; one of an audit further in says one of a few sentences."""
    for reason in REFUSALS.values():
        if (error.code, error.reason) == (REFUSED, reason):
            return Error(REFUSED, reason)
    return Error(int(error.code) if error.code in _ERROR_CODES else 0, _NO_TEXT)


def _counts(labels: Tensor, classes: int) -> Tensor:
    try:
        return counts_of(labels, classes)
    except ValueError:
        # The reason may be told to the server: it names no label.
        raise ValueError(f"the labels provided are not classes 0 to {classes - 1}") from None


@contextmanager
def _holding(variable: ContextVar[list[_Given] | None]) -> Iterator[list[_Given]]:
    """What the app provides inside; audits within each other see the same."""
    if (held := variable.get()) is not None:
        yield held
        return
    token = variable.set(held := [])
    try:
        yield held
    finally:
        variable.reset(token)


def _client_name(context: Context) -> str:
    partition = context.node_config.get("partition-id")
    return f"node-{context.node_id}" if partition is None else f"partition-{partition}"
