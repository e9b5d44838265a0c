"""Audit of what an NVIDIA FLARE client sends: a filter for a job or for a site's privacy.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import ContentBlockedException, Filter, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from labelleak.audit.labels import read_label_sets, read_labels
from labelleak.errors import MissingKnowledge, UnreadableFile
from labelleak.federated.auditor import Auditor
from labelleak.federated.contents import Contents, look_at
from labelleak.federated.nvflare_contents import (
    Result,
    foreign_properties,
    plain,
    read_result,
    remove_properties,
)
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.replies import Snapshot
from labelleak.loss import Loss
from labelleak.metrics import counts_of
from labelleak.training import LocalTraining
from labelleak.updates.heads import by_bare_name

FRAMEWORK = "nvflare"
REFUSAL_HEADER = "labelleak_refusal"
"""Header of the reply that stands in for a refused result: why, in one sentence."""

_RECEIVED = "__labelleak_received"
_FILTERED = "__labelleak_filtered"
# Which of what the server sent comes back could tell as many bits.
_MOST_KNOWN = 64


@dataclass(frozen=True)
class _Received:
    """What came with a task, as far as an audit needs it.

    Attributes:
        round: Number of the round.
        weights: What is read of the weights.
        problem: Why they cannot be read, or None.
        known: Headers and meta, which a client may send back.
    """

    round: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    problem: str | None = None
    known: Mapping[str, Any] = field(default_factory=dict)


_NOTHING_RECEIVED = _Received(
    problem="in privacy.json, name this filter among the task_data_filters, too"
)


class LeakageAudit(Filter):  # type: ignore[misc]
    """Audits the weights, or their change, that a task's result holds, before they leave.

    In a job, add it as a task-result filter. A site's privacy.json needs it as a task-data filter,
    too, because filters there get no events by which to see the weights received. All else that a
    result holds (other objects of whatever kind, headers, meta, public properties of the context)
    is compared with the policy's allow-list. A refused result is replaced by a reply of return code
    ``TASK_RESULT_FILTER_ERROR`` with the reason in `REFUSAL_HEADER`: the server never gets any of
    it. Under a refusing policy a result leaves as a new one of what was looked at. Nothing that a
    client or server sends makes the filter raise.

    Examples:
        >>> from labelleak.federated.nvflare import LeakageAudit
        >>> LeakageAudit(training={"learning_rate": 0.1, "batch_size": 32}).training["batch_size"]
        32
    """

    def __init__(
        self,
        policy: str | None = None,
        labels: str | None = None,
        training: Mapping[str, Any] | None = None,
        instances: int | None = None,
        head: str | None = None,
        label: str = "",
        loss: str | Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the settings; files are read where the filter runs, which may be another machine.

        Args:
            policy: File of the policy, on the site; None for the default one, which records and
                warns. One that cannot be read refuses everything.
            labels: File of the site's own labels (integers apart by spaces or line breaks; of
                several labels with a sigmoid each, a line of zeros and ones for every sample), to
                score the attack by; it never sees them.
            training: What is known of the local training: keyword arguments of `LocalTraining`, as
                a configuration in JSON can hold them. Steps that are neither there nor countable
                are what the client says in ``NUM_STEPS_CURRENT_ROUND``.
            instances: Number of local samples.
            head: Name of the final linear layer; None to find it.
            label: Where among the filters this one stands, ``"before clipping"`` say.
            loss: The name of the kind of the client's loss, or keyword arguments of `Loss`, with
                lists for tensors; None for cross-entropy.
        """
        super().__init__()
        # The job API writes a job's configuration from attributes of these names.
        self.policy, self.labels, self.head, self.label = policy, labels, head, label
        self.training, self.instances = dict(training or {}), instances
        self.loss = loss
        self._made: Auditor | None = None
        self._unaudited: set[str] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Remember the weights that a job's client starts from; notice results not audited."""
        if self.get_prop(FilterContextKey.CHAIN_TYPE) != FilterChainType.TASK_RESULT_CHAIN:
            return
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            fl_ctx.set_prop(_FILTERED, False, private=True, sticky=False)
            self._remember(fl_ctx.get_prop(FLContextKey.TASK_DATA), fl_ctx)
        elif event_type == EventType.AFTER_TASK_RESULT_FILTER and not fl_ctx.get_prop(_FILTERED):
            task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
            if task not in self._unaudited:
                self._unaudited.add(task)
                self.log_warning(
                    fl_ctx,
                    f"leakage audit: results of task {task!r} are not audited: name the task where "
                    f"the filter is added, as in tasks=[{task!r}] (FLARE knows no '*' there)",
                )

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Pass a task's data on, remembering it; pass a task's result on, or refuse to.

        Args:
            shareable: The data or result of the task.
            fl_ctx: NVIDIA FLARE's context of the task.

        Returns:
            The same object; under a refusing policy a new one of the same content, or an error
            reply.
        """
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            self._remember(shareable, fl_ctx)
            return shareable
        fl_ctx.set_prop(_FILTERED, True, private=True, sticky=False)
        try:
            return self._passed(shareable, fl_ctx)
        except ContentBlockedException as refusal:
            return self._refuse(str(refusal), fl_ctx)

    def _passed(self, shareable: Any, fl_ctx: FLContext) -> Shareable:
        """What leaves in place of a result.

        Raises:
            ContentBlockedException: The policy refuses to send it.
        """
        auditor, received = self._auditor(), self._received(fl_ctx)
        refusing = auditor.policy.action == "refuse"
        contents = Contents()
        try:
            known = received.known if len(received.known) <= _MOST_KNOWN else {}
            result = read_result(shareable, {**known, **_identity(fl_ctx)})
            contents = self._contents(result, received, fl_ctx, refusing)
        except Exception as error:  # whatever a client sent
            decision: Decision | None = auditor.failed(error, self._occasion(fl_ctx))
        else:
            decision = self._decision(result, received, contents, fl_ctx)
            if refusing:
                shareable = result.message
        if decision is not None:
            self._settle(decision, fl_ctx)
        return shareable

    def _contents(
        self, result: Result, received: _Received, fl_ctx: FLContext, refusing: bool
    ) -> Contents:
        """What a result holds beside the weights, and what its context would send with it."""
        entries = dict(result.entries)
        if properties := foreign_properties(fl_ctx):
            entries["context"] = properties
            if refusing:
                remove_properties(fl_ctx, properties)
        problems = list(result.problems)
        code = result.message.get_return_code()
        if code != ReturnCode.OK and set(result.message) - {ReservedHeaderKey.HEADERS}:
            problems.append("an object in a result of another return code than OK")
        classes = None if received.problem else self._auditor().classes(received.weights)
        return look_at(entries, self._auditor().policy.allow, classes, problems)

    def _decision(
        self, result: Result, received: _Received, contents: Contents, fl_ctx: FLContext
    ) -> Decision | None:
        """What becomes of a result; None where there is nothing to write down."""
        auditor, occasion = self._auditor(), self._occasion(fl_ctx)
        if result.weights is None:
            return auditor.audit_message(contents, occasion)
        try:
            if received.problem is not None:
                raise MissingKnowledge(f"the weights received are not known: {received.problem}")
            sent = result.weights
            if result.is_change:
                sent = _added(received.weights, sent)
            counts = None
            if self.labels is not None:
                classes = auditor.classes(received.weights)
                counts = counts_of(self._own_labels(self.labels, classes), classes)
            return auditor.audit_update(
                received.weights,
                sent,
                self._training(result.steps, total_known=counts is not None),
                occasion,
                instances=self.instances,
                true_counts=counts,
                contents=contents,
            )
        except Exception as error:  # whatever a client sent
            return auditor.failed(error, occasion, contents)

    def _told_loss(self) -> Loss:
        return Loss.of("cross_entropy" if self.loss is None else self.loss)

    def _own_labels(self, path: str, classes: int) -> Tensor:
        """The site's labels: class indices, or a set for every sample."""
        if not self._told_loss().is_multi_label:
            return read_labels(path, classes)
        try:
            return read_label_sets(path, classes)
        except UnreadableFile:
            if classes != 2:
                raise
            return read_labels(path, classes)  # of one logit, read as two classes

    def _auditor(self) -> Auditor:
        """The auditor, made when it is needed.

        Raises:
            ContentBlockedException: There is no policy to go by.
        """
        if self._made is None:
            try:
                self._made = Auditor(self.policy, head=self.head, loss=self._told_loss())
            except Exception as error:
                self.logger.error("leakage audit: not sent: %s", error)
                raise ContentBlockedException("there is no policy to go by") from None
        return self._made

    def _remember(self, shareable: Any, fl_ctx: FLContext) -> None:
        received = _Received()
        try:
            number = _whole(shareable.get_header(AppConstants.CURRENT_ROUND))
            headers = plain(shareable.get(ReservedHeaderKey.HEADERS))
            received = replace(received, round=number, known=headers)
            meta = plain(from_shareable(shareable).meta)
            received = replace(received, known={**meta, **headers})
            read = read_result(shareable, received.known)
            if read.weights is None:
                raise ValueError("the server sent none")
            if read.is_change:
                raise ValueError("the server sent a change of the weights")
            received = replace(received, weights=self._auditor().snapshot(read.weights))
        except Exception as error:  # the result is what matters, if there will be one
            received = replace(received, problem=str(error))
        fl_ctx.set_prop(_RECEIVED, received, private=True, sticky=False)

    def _received(self, fl_ctx: FLContext) -> _Received:
        received = fl_ctx.get_prop(_RECEIVED)
        return received if isinstance(received, _Received) else _NOTHING_RECEIVED

    def _settle(self, decision: Decision, fl_ctx: FLContext) -> None:
        """Note what happened in the site's log, and stop what the policy refuses.

        Raises:
            ContentBlockedException: The policy refuses to send it.
        """
        # How much was restored stays on the site: a job may stream the site's log to the server.
        verdict = f"the verdict is {decision.record.verdict!r}"
        found = f"{verdict} ({decision.record.error})" if decision.record.error else verdict
        if decision.send:
            self.log_info(fl_ctx, f"leakage audit: {decision.record.action}: {found}")
            return
        self.log_warning(fl_ctx, f"leakage audit: not sent: {found}")
        raise ContentBlockedException(
            f"{verdict}, and the policy allows {self._auditor().policy.limit}"
        )

    def _refuse(self, reason: str, fl_ctx: FLContext) -> Shareable:
        headers = {
            REFUSAL_HEADER: f"refused by the site's policy: {reason}",
            AppConstants.CURRENT_ROUND: self._received(fl_ctx).round,
        }
        return make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR, headers=headers)

    def _occasion(self, fl_ctx: FLContext) -> Occasion:
        return Occasion(
            self._received(fl_ctx).round,
            str(fl_ctx.get_identity_name()) or "client",
            self.label,
            FRAMEWORK,
            run=str(fl_ctx.get_job_id() or ""),
            task=str(fl_ctx.get_prop(FLContextKey.TASK_NAME) or ""),
        )

    def _training(self, steps: Any, *, total_known: bool) -> LocalTraining:
        """The recipe of the settings; the client's number of steps where nothing counts them."""
        told = LocalTraining(**self.training)
        countable = told.batch_size is not None and (total_known or self.instances is not None)
        return told if told.steps is not None or countable else replace(told, steps=steps)


def _identity(fl_ctx: FLContext) -> dict[str, Any]:
    """What the server knows of a client and its job by itself."""
    return {
        FLMetaKey.JOB_ID: fl_ctx.get_job_id(),
        FLMetaKey.SITE_NAME: fl_ctx.get_identity_name(),
    }


def _added(before: Mapping[str, Tensor], change: Mapping[str, Any]) -> dict[str, Any]:
    """Weights after a change, as far as the audit reads them; other tensors stay the change.

    Those are only checked for their shape and for NaN, and to add them up would cost memory.
    """
    integers = before.integers if isinstance(before, Snapshot) else {}
    after = {}
    for name, value in by_bare_name(change).items():
        start = before.get(name, integers.get(name))
        if isinstance(value, Tensor) and start is not None and value.shape == start.shape:
            moved = value.detach().cpu()
            exact = not (moved.is_floating_point() or start.is_floating_point())
            after[name] = start + moved if exact else start.double() + moved.double()
        else:
            after[name] = value
    return after


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
