"""Audit of what an NVIDIA FLARE client sends: a filter for a job or for a site's privacy.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import ContentBlockedException, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModelConst, ParamsType
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from labelleak.audit.labels import read_labels
from labelleak.errors import MissingKnowledge
from labelleak.federated.auditor import Auditor, Decision, Occasion
from labelleak.metrics import counts_of
from labelleak.training import LocalTraining
from labelleak.updates.heads import by_bare_name

FRAMEWORK = "nvflare"
REFUSAL_HEADER = "labelleak_refusal"
"""Header of the reply that stands in for a refused result: why, in one sentence."""

_RECEIVED = "__labelleak_received"
_FILTERED = "__labelleak_filtered"
# What a client sends that holds no weights.
_NO_MODEL = (DataKind.METRICS, DataKind.ANALYTIC, DataKind.STATISTICS, DataKind.PSI)


@dataclass(frozen=True)
class _Received:
    """What came with a task: the round, and what is read of the weights or why it cannot be."""

    round: int
    weights: Mapping[str, Tensor]
    problem: str | None


class LeakageAudit(DXOFilter):  # type: ignore[misc]
    """Audits the weights, or their change, that a task's result holds, before they leave.

    In a job, add it as a task-result filter. A site's privacy.json needs it as a task-data filter,
    too, because filters there get no events by which to see the weights received. Results without
    weights (metrics, statistics) pass; what holds anything else cannot be audited, and is treated
    as an audit that failed. A refused result is replaced by a reply of return code
    ``TASK_RESULT_FILTER_ERROR`` with the reason in `REFUSAL_HEADER`: the server never gets the
    arrays. Nothing that a client or server sends makes the filter raise.
    """

    def __init__(
        self,
        policy: str | None = None,
        labels: str | None = None,
        training: Mapping[str, Any] | None = None,
        instances: int | None = None,
        head: str | None = None,
        label: str = "",
    ) -> None:
        """Keep the settings; files are read where the filter runs, which may be another machine.

        Args:
            policy: File of the policy, on the site; None for the default one, which records and
                warns. One that cannot be read refuses everything.
            labels: File of the site's own labels (integers apart by spaces or line breaks), to
                score the attack by; it never sees them.
            training: What is known of the local training: keyword arguments of `LocalTraining`, as
                a configuration in JSON can hold them. Steps that are neither there nor countable
                are what the client says in ``NUM_STEPS_CURRENT_ROUND``.
            instances: Number of local samples.
            head: Name of the final linear layer; None to find it.
            label: Where among the filters this one stands, ``"before clipping"`` say.
        """
        super().__init__(supported_data_kinds=None, data_kinds_to_filter=None)
        # The job API writes a job's configuration from attributes of these names.
        self.policy, self.labels, self.head, self.label = policy, labels, head, label
        self.training, self.instances = dict(training or {}), instances
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
            The same object, or an error reply where the policy refuses.
        """
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            self._remember(shareable, fl_ctx)
            return shareable
        fl_ctx.set_prop(_FILTERED, True, private=True, sticky=False)
        try:
            if content := [str(key) for key in shareable if key != ReservedHeaderKey.HEADERS]:
                # The base class would let pass what is no DXO, what is beside it, and errors.
                from_shareable(shareable)
                if len(content) > 1:
                    raise ValueError(f"the result holds {len(content)} objects: 1 can be audited")
                if (code := shareable.get_return_code()) != ReturnCode.OK:
                    raise ValueError(f"a result of return code {str(code)[:40]} holds an object")
                return super().process(shareable, fl_ctx)
        except ContentBlockedException as refusal:
            return self._refuse(str(refusal), fl_ctx)
        except Exception as error:
            try:
                self._settle(self._failed(error, fl_ctx), fl_ctx)
            except ContentBlockedException as refusal:
                return self._refuse(str(refusal), fl_ctx)
        return shareable

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Audit one object of a result; it stays as it is.

        Args:
            dxo: The object.
            shareable: The result that it is part of.
            fl_ctx: NVIDIA FLARE's context of the task.

        Raises:
            ContentBlockedException: The policy refuses to send it.
        """
        if dxo.data_kind not in _NO_MODEL:
            self._settle(self._audit(dxo, shareable, fl_ctx), fl_ctx)

    def _auditor(self) -> Auditor:
        """The auditor, made when it is needed.

        Raises:
            ContentBlockedException: There is no policy to go by.
        """
        if self._made is None:
            try:
                self._made = Auditor(self.policy, head=self.head)
            except Exception as error:
                self.logger.error("leakage audit: not sent: %s", error)
                raise ContentBlockedException("there is no policy to go by") from None
        return self._made

    def _remember(self, shareable: Any, fl_ctx: FLContext) -> None:
        weights: Mapping[str, Tensor] = {}
        number, problem = 0, None
        try:
            number = _whole(shareable.get_header(AppConstants.CURRENT_ROUND))
            weights, is_change = _model_in(from_shareable(shareable))
            if is_change:
                raise ValueError("the server sent a change of the weights")
            weights = self._auditor().snapshot(weights)
        except Exception as error:  # the result is what matters, if there will be one
            weights, problem = {}, str(error)
        received = _Received(number, weights, problem)
        fl_ctx.set_prop(_RECEIVED, received, private=True, sticky=False)

    def _audit(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> Decision:
        try:
            received = fl_ctx.get_prop(_RECEIVED)
            if received is None:
                raise MissingKnowledge(
                    "the weights received are not known: in privacy.json, name this filter among "
                    "the task_data_filters, too"
                )
            if received.problem is not None:
                raise MissingKnowledge(f"the weights received are not known: {received.problem}")
            sent, is_change = _model_in(dxo)
            if is_change:
                sent = _added(received.weights, sent)
            counts = None
            if self.labels is not None:
                classes = self._auditor().classes(received.weights)
                counts = counts_of(read_labels(self.labels, classes), classes)
            return self._auditor().audit_update(
                received.weights,
                sent,
                self._training(dxo, total_known=counts is not None),
                self._occasion(fl_ctx, shareable),
                instances=self.instances,
                true_counts=counts,
            )
        except ContentBlockedException:
            raise
        except Exception as error:
            return self._failed(error, fl_ctx, shareable)

    def _failed(
        self, error: Exception, fl_ctx: FLContext, shareable: Shareable | None = None
    ) -> Decision:
        return self._auditor().failed(error, self._occasion(fl_ctx, shareable))

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
            AppConstants.CURRENT_ROUND: self._occasion(fl_ctx, None).round,
        }
        return make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR, headers=headers)

    def _occasion(self, fl_ctx: FLContext, shareable: Shareable | None) -> Occasion:
        received = fl_ctx.get_prop(_RECEIVED)
        number = 0 if received is None else received.round
        if received is None and shareable is not None:
            number = _whole(shareable.get_header(AppConstants.CURRENT_ROUND))
        client = str(fl_ctx.get_identity_name()) or "client"
        return Occasion(number, client, self.label, FRAMEWORK)

    def _training(self, dxo: DXO, *, total_known: bool) -> LocalTraining:
        told = LocalTraining(**self.training)
        countable = told.batch_size is not None and (total_known or self.instances is not None)
        if told.steps is not None or countable:
            return told
        return replace(told, steps=dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))


def _model_in(dxo: DXO) -> tuple[dict[str, Any], bool]:
    """The weights, or their change, in an object as tensors by name, and whether it is a change.

    Raises:
        ValueError: It holds neither.
    """
    kind, content = dxo.data_kind, dxo.data
    if kind == DataKind.FL_MODEL:
        content = dxo.data.get(FLModelConst.PARAMS)
        if dxo.data.get(FLModelConst.OPTIMIZER_PARAMS):
            raise ValueError("a model with the state of its optimizer cannot be audited")
        change = str(dxo.data.get(FLModelConst.PARAMS_TYPE)).endswith(ParamsType.DIFF.value)
        kind = DataKind.WEIGHT_DIFF if change else DataKind.WEIGHTS
    if kind not in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF) or not isinstance(content, Mapping):
        raise ValueError(f"an object of kind {str(dxo.data_kind)[:40]} cannot be audited")
    return {str(name): _tensor(value) for name, value in content.items()}, (
        kind == DataKind.WEIGHT_DIFF
    )


def _tensor(value: Any) -> Any:
    """An array as a tensor that shares its memory; anything else as it is."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError):
        return value


def _added(before: Mapping[str, Tensor], change: Mapping[str, Any]) -> dict[str, Any]:
    """Weights after a change, as far as the audit reads them; other tensors stay the change.

    Those are only checked for their shape and for NaN, and to add them up would cost memory.
    """
    after = {}
    for name, value in by_bare_name(change).items():
        start = before.get(name)
        fits = isinstance(value, Tensor) and start is not None and value.shape == start.shape
        after[name] = start.double() + value.detach().cpu().double() if fits else value  # type: ignore[union-attr]
    return after


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0
