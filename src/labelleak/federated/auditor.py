"""The audit of one client's reply in a federation, whatever the client sent."""

import logging
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from labelleak.attacks import Need, find_attack
from labelleak.attacks.virtual import shared_by
from labelleak.audit.record import AuditRecord
from labelleak.audit.running import audit_observation
from labelleak.errors import MissingKnowledge
from labelleak.federated.buffers import Buffers
from labelleak.federated.contents import BY_CLASS, NOTHING, Contents
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.policy import Policy, RoundVerdict, read_policy
from labelleak.federated.replies import (
    Reading,
    Snapshot,
    buffers_of,
    classes_of,
    observe_gradients,
    observe_weights,
    problem_of,
    text_of,
)
from labelleak.federated.rounds import RoundRecord, Taken, append_record
from labelleak.federated.running_answer import RunningAnswer, in_all, running_answer
from labelleak.federated.samples import (
    approximations,
    instances_of,
    unknown,
    with_counted_steps,
)
from labelleak.isolation import undisturbed
from labelleak.loss import Loss
from labelleak.observation import Auxiliary, Observation
from labelleak.training import LocalTraining

_log = logging.getLogger(__name__)

# Attacks that need one of these read more than the head.
_BEYOND_THE_HEAD = frozenset({Need.MODEL, Need.GRADIENTS, Need.AFTER})


class Auditor:
    """Audits what clients send, and decides by a policy whether it leaves.

    Nothing that a client sends makes it raise, changes what is passed in, or disturbs a generator
    of random numbers: training goes on as without it. It computes on the CPU, and reads the final
    layer alone unless there is a model or the attack needs more. Updates that follow on one another
    and share model, recipe and number of samples share virtual clients (attacks ``virtual`` and
    ``synthetic``).

    Examples:
        >>> import torch
        >>> from labelleak import LocalTraining
        >>> from labelleak.federated import train_locally
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> recipe = LocalTraining(learning_rate=0.1, batch_size=8)
        >>> update = train_locally(model, inputs, labels, recipe, classes=5)
        >>> import tempfile
        >>> from labelleak.federated import Auditor, Occasion, Policy
        >>> auditor = Auditor(Policy(action="refuse", threshold=0.5, records=tempfile.mkdtemp()))
        >>> decision = auditor.audit_update(
        ...     update.before,
        ...     update.after,
        ...     recipe,
        ...     Occasion(round=1, client="hospital 3"),
        ...     instances=8,
        ...     true_counts=update.true_counts,
        ... )
        >>> decision.send, decision.record.verdict
        (False, 'over')
    """

    def __init__(
        self,
        policy: Policy | str | Path | None = None,
        *,
        model: nn.Module | None = None,
        head: str | None = None,
        loss: Loss | str = "cross_entropy",
        **knowledge: Any,
    ) -> None:
        """Take in what is the same for every audit.

        Args:
            policy: The policy or its file; None for the default one, which records and warns.
            model: The network, for attacks that use all of it, in the mode that clients train it
                in; it is copied. None: attacks have the final layer alone.
            head: Name of the final linear layer; None to find it.
            loss: The clients' loss, or the name of its kind.
            **knowledge: Other fields of `Observation` that hold for every update: ``auxiliary``,
                ``input_shape``, ``present_classes``.

        Raises:
            UnreadableFile: The policy cannot be read.
            MissingKnowledge: The policy's attack needs the model, and there is none.
        """
        if policy is None:
            policy = Policy()
        self.policy = policy if isinstance(policy, Policy) else read_policy(policy)
        named = self.policy.attack
        needs = frozenset(() if named == "auto" else find_attack(named).needs)
        if Need.MODEL in needs and model is None:
            raise MissingKnowledge(f"attack {self.policy.attack!r} needs {Need.MODEL.value}")
        with undisturbed():
            model = None if model is None else deepcopy(model).cpu()
        whole = model is not None or not needs.isdisjoint(_BEYOND_THE_HEAD)
        self._reading = Reading(head, model, whole, {"loss": Loss.of(loss), **knowledge})
        self._of_attack = shared_by(self.policy.attack)

    def snapshot(self, state: Mapping[str, Tensor]) -> Snapshot:
        """Copy what an audit reads of a model, before a training that changes it in place.

        Args:
            state: State dict, or parameters by name.

        Returns:
            The final layer's tensors on the CPU (all tensors where the attack reads more), to pass
            as ``before``.

        Raises:
            AmbiguousHead: The final layer is not clear.
        """
        reading = self._reading
        return Snapshot(state, head=reading.head, whole=reading.whole, accepted=reading.accepted)

    def classes(self, before: Mapping[str, Any]) -> int:
        """Number of classes that a model tells apart, to count true labels by.

        Args:
            before: State dict or a `snapshot` of it.

        Raises:
            AmbiguousHead: The final layer is not clear.
        """
        return classes_of(before, self._reading.head, accepted=self._reading.accepted)

    def audit_update(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        training: LocalTraining,
        occasion: Occasion,
        *,
        instances: int | None = None,
        true_counts: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
        contents: Contents = NOTHING,
    ) -> Decision:
        """Audit weights that are about to be sent.

        Args:
            before: State dict that the server handed out.
            after: State dict that is about to leave.
            training: What is known of the local training.
            occasion: What the audit is written down under.
            instances: Number of local samples, FedAvg's ``num-examples``; None: not known.
            true_counts: The site's own count of every class, integers, shape (classes,). The attack
                never sees them; they stay in the site's file.
            auxiliary: Samples that a server could have, for this audit in place of the auditor's;
                none of them is written down.
            contents: What the message carries beside the weights, see `look_at`. What of it the
                policy does not allow makes this an audit that failed.

        Returns:
            The decision; its record is written.
        """
        reading = self._reading.lent(auxiliary)

        def look(total: int | None, buffers: Buffers) -> tuple[Observation, tuple[str, ...]]:
            known = total if instances is None else instances
            recipe, notes = with_counted_steps(training, known, buffers.steps)
            told = recipe.resolved(known)
            number = instances_of(told, instances, total)
            observation = observe_weights(before, after, told, number, reading)
            return observation, (*unknown(told), *buffers.notes, *notes)

        def check() -> tuple[str | None, Buffers]:
            return problem_of(before, after, complete=True), buffers_of(before, after)

        about = {"kind": "weights", "training": asdict(training), "instances": instances}
        return self._audit(look, check, about, occasion, true_counts, contents)

    def audit_gradients(
        self,
        before: Mapping[str, Any],
        gradients: Mapping[str, Any],
        training: LocalTraining,
        occasion: Occasion,
        *,
        instances: int | None = None,
        true_counts: Tensor | None = None,
    ) -> Decision:
        """Audit a gradient that is about to be sent, of one step or the mean of several.

        Args:
            before: State dict, or parameters by name, that the gradient was computed at.
            gradients: Gradient of each parameter by name; None for frozen ones.
            training: What is known of the local training; the learning rate is of no use here.
            occasion: As of `audit_update`, as are the following.
            instances: Number of local samples.
            true_counts: The site's own counts.

        Returns:
            The decision; its record is written.
        """

        def look(total: int | None, _: Buffers) -> tuple[Observation, tuple[str, ...]]:
            told = training.resolved(total if instances is None else instances, one_step=True)
            number = instances_of(told, instances, total)
            return observe_gradients(before, gradients, told, number, self._reading), ()

        def check() -> tuple[str | None, Buffers]:
            return problem_of(before, gradients, complete=False), Buffers()

        about = {"kind": "gradients", "training": asdict(training), "instances": instances}
        return self._audit(look, check, about, occasion, true_counts, NOTHING)

    def audit_message(self, contents: Contents, occasion: Occasion) -> Decision | None:
        """Decide on a message that holds no weights.

        Args:
            contents: What it holds, see `look_at`.
            occasion: As of `audit_update`.

        Returns:
            The decision; its record is written. None where there is nothing to write down: the
            policy allows all of it, and none of it is told by class.
        """
        if contents.problem is not None:
            return self.failed(contents.problem, occasion, contents)
        if not any(leak.what == BY_CLASS for leak in contents.leaks):
            return None
        reason = "the policy allows all that the message holds; numbers by class are among it"
        return self._decide("within", reason, occasion, contents)

    def failed(
        self, error: Exception | str, occasion: Occasion, contents: Contents = NOTHING
    ) -> Decision:
        """Decide on a message that the adapter could not even read, or that must not leave.

        Args:
            error: What went wrong.
            occasion: As of `audit_update`.
            contents: What the message holds beside the weights, as far as that was looked at.

        Returns:
            The decision; its record is written.
        """
        text = _joined(contents.problem, text_of(error))
        return self._decide("failed", f"there is no audit: {text}", occasion, contents, error=text)

    def _audit(
        self,
        look: Callable[[int | None, Buffers], tuple[Observation, tuple[str, ...]]],
        check: Callable[[], tuple[str | None, Buffers]],
        source: dict[str, Any],
        occasion: Occasion,
        true_counts: Tensor | None,
        contents: Contents,
    ) -> Decision:
        start = time.perf_counter()
        found: AuditRecord | None = None
        buffers, error = Buffers(), contents.problem
        try:
            with undisturbed():
                # What is wrong elsewhere in the update does not keep the head from being read.
                problem, buffers = check()
                error = _joined(error, problem, buffers.problem)
                counts = None if true_counts is None else true_counts.detach().cpu().long()
                # Labels that a sample may have several of do not add up to the samples.
                total = self._reading.accepted.total(counts)
                observation, notes = look(total, buffers)
                found = audit_observation(
                    observation,
                    self.policy.attack,
                    true_counts=counts,
                    **vars(self.policy.rule),
                    source={
                        **source,
                        "loss": observation.loss.kind,
                        "approximations": [*approximations(observation), *notes],
                    },
                    time_limit=self.policy.time_limit,
                    **self._of_attack,
                )
        except Exception as problem:  # whatever a client sent
            error = _joined(error, text_of(problem))
        answer = self._running(found, occasion)
        verdict, reason = self._judge(found, error)
        if self.policy.across_rounds and found is not None:
            verdict, reason = in_all(verdict, reason, answer)
        return self._decide(
            verdict,
            reason,
            occasion,
            replace(contents, leaks=(*contents.leaks, *buffers.leaks)),
            audit=None if found is None else found.as_dict(),
            known=None if answer is None else answer.as_dict(),
            error=error,
            seconds=time.perf_counter() - start,
        )

    def _running(self, found: AuditRecord | None, occasion: Occasion) -> RunningAnswer | None:
        """What all rounds tell together; None of updates whose data are not those of every round.

        Gradients are of another batch each time, aggregates of other clients, and the counts of
        label sets have no common sum.
        """
        if found is None or found.source["kind"] != "weights" or any(self._reading.accepted):
            return None
        if occasion.aggregate_of is not None:
            return None
        return running_answer(self.policy.records, occasion, found, self.policy.rule)

    def _judge(self, found: AuditRecord | None, error: str | None) -> tuple[RoundVerdict, str]:
        if found is None:
            return "failed", f"there is no audit: {error}"
        verdict, reason = self.policy.judge(found)
        if error is None:
            return verdict, reason
        if verdict == "over":
            return "over", f"{reason}; besides, {error}"
        return "failed", f"not all of it could be audited: {error}"

    def _decide(
        self,
        verdict: RoundVerdict,
        reason: str,
        occasion: Occasion,
        contents: Contents,
        **result: Any,
    ) -> Decision:
        refusing = self.policy.action == "refuse"
        action: Taken = "sent"
        if refusing and verdict != "within":
            action = "refused"
        elif self.policy.action == "warn" and verdict in ("over", "failed"):
            action = "warned"
        record = RoundRecord(
            action=action,
            verdict=verdict,
            reason=reason,
            policy=self.policy.as_dict(),
            unaudited=list(contents.unaudited),
            leaks=[asdict(leak) for leak in contents.leaks],
            **vars(occasion),
            **result,
        )
        try:
            append_record(self.policy.records, record)
        except Exception as problem:  # a full disk must not end the training
            reason = f"{reason}; and there is no record of it: {text_of(problem)}"
            _log.warning("round %s, client %s: %s", record.round, record.client, text_of(problem))
            action = "refused" if refusing else action
        if action == "warned":
            _log.warning("round %s, client %s: %s", record.round, record.client, reason)
        return Decision(record, action != "refused", reason)


def _joined(*problems: str | None) -> str | None:
    """What is wrong, in one clause, each thing once; None where nothing is."""
    return "; ".join(dict.fromkeys(filter(None, problems))) or None
