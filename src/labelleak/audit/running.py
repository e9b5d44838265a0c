"""Run one audit: restore the labels of an update, score them, and judge the result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from labelleak.attacks import restore
from labelleak.audit.fit import flag_misfit
from labelleak.audit.judging import judged_by
from labelleak.audit.record import AuditRecord
from labelleak.audit.remedies import told_flag
from labelleak.audit.rule import Measure, Rule
from labelleak.errors import InvalidObservation
from labelleak.guess import checked_prior
from labelleak.metrics import score
from labelleak.observation import Observation
from labelleak.restoration import Restoration


def audit_observation(
    observation: Observation,
    attack: str = "auto",
    *,
    true_counts: Int[Tensor, " classes"] | None = None,
    measure: Measure | None = None,
    threshold: float | None = None,
    floor: int = 10,
    prior: Sequence[float] | None = None,
    time_limit: float | None = None,
    ceiling: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    **hyper_parameters: object,
) -> AuditRecord:
    """Restore the labels of one update, score them, and judge the result.

    The attack never sees the true counts: they are only compared with its result.

    Args:
        observation: What the server sees.
        attack: Registered name, or ``"auto"``.
        true_counts: The auditor's own counts, int64, shape (classes,), when known.
        measure: What is measured, see `labelleak.audit.Rule`: ``"advantage"``, ``"accuracy"``,
            ``"small-cells"`` or ``"exact"``. None: accuracy where there is a threshold, else
            advantage. Label sets have no guess to gain on: for advantage stands accuracy.
        threshold: Largest accuracy or advantage that is acceptable, in [0, 1]; None for no limit.
        floor: For ``"small-cells"``, the smallest count that may be told.
        prior: Share of each class as the public knows it, for the best guess; None for even ones.
        time_limit: Seconds after which an attack ends its search, see `labelleak.restore`.
        ceiling: What attacks of moments can reach, for the record, see
            `labelleak.audit.moment_ceiling`; None where it was not computed.
        source: Where the observation is from, for the record.
        **hyper_parameters: Keyword arguments of the attack.

    Returns:
        The record.

    Raises:
        InvalidObservation: The true counts do not sum to the number of instances, or a measure,
            threshold, floor or prior is impossible.
        ValueError: The time limit is not positive.
        MissingKnowledge: The observation lacks what the attack needs.

    Examples:
        >>> import labelleak, torch
        >>> model = torch.nn.Linear(5, 4)
        >>> seen = labelleak.capture(model, torch.ones(6, 5), torch.tensor([0, 0, 1, 3, 3, 3]))
        >>> record = audit_observation(seen, true_counts=torch.tensor([2, 1, 0, 3]), threshold=0.5)
        >>> record.counts, record.verdict, record.exit_status
        ([2, 1, 0, 3], 'over threshold', 1)
    """
    total = observation.num_instances
    rule = checked_rule(measure, threshold, floor, prior, observation.classes)
    if observation.loss.is_multi_label:
        if rule.measure == "advantage":
            # Nobody can guess how many labels there are, to gain on that.
            rule = replace(rule, measure="accuracy")
        _check_label_counts(observation, true_counts)
    elif true_counts is not None and total is not None and int(true_counts.sum()) != total:
        raise InvalidObservation(
            f"{int(true_counts.sum())} true labels for {_size_of(observation)}: they must agree"
        )
    start = time.perf_counter()
    found = restore(observation, attack, time_limit=time_limit, **hyper_parameters)
    seconds = time.perf_counter() - start
    if true_counts is not None:
        found = flag_misfit(observation, found, true_counts)
    judged, rounded = judged_by(found, true_counts, rule), None
    if judged.scored is not None and true_counts is not None and found.rounded is not None:
        rounded = score(found, true_counts, use="rounded", prior=rule.prior, floor=rule.floor)
    return AuditRecord(
        attack=found.attack,
        classes=observation.classes,
        features=observation.head.features,
        head=observation.head.name,
        batch_size=observation.batch_size,
        local_steps=observation.local_steps,
        present=found.present.nonzero()[:, 0].tolist(),
        counts=_listed(found.counts),
        rounded=_listed(found.rounded),
        proportions=None if found.counts is not None else _listed(found.proportions),
        certified=found.certified,
        flags=[told_flag(flag) for flag in found.flags],
        true_counts=_listed(true_counts),
        score=None if judged.scored is None else judged.scored.as_dict(),
        score_rounded=None if rounded is None else rounded.as_dict(),
        threshold=threshold,
        verdict=judged.verdict.value,
        reason=judged.reason,
        seconds=seconds,
        source=dict(source or {}),
        measure=str(rule.measure),
        floor=rule.floor,
        prior=None if rule.prior is None else list(rule.prior),
        limit=rule.limit,
        intervals=_listed(found.intervals),
        expected=judged.expected,
        hidden=judged.hidden,
        ceiling=None if ceiling is None else dict(ceiling),
        samples=_samples(observation, found),
    )


def _samples(observation: Observation, found: Restoration) -> int | None:
    """Number of samples; as many as labels where each has one."""
    if observation.num_instances is None and found.counts is not None and not found.multi_label:
        return int(found.counts.sum())
    return observation.num_instances


def checked_rule(
    measure: Measure | None,
    threshold: float | None,
    floor: int,
    prior: Sequence[float] | None,
    classes: int,
) -> Rule:
    """The rule of these values, for so many classes.

    Raises:
        InvalidObservation: One of them is impossible.
    """
    try:
        rule = Rule(measure, threshold, floor, prior)
        if rule.prior is not None:
            checked_prior(rule.prior, classes)
    except ValueError as error:
        raise InvalidObservation(str(error)) from None
    return rule


def _check_label_counts(observation: Observation, true_counts: Tensor | None) -> None:
    """Refuse more samples with a label than there are."""
    total = observation.num_instances
    if true_counts is None or total is None or not true_counts.numel():
        return
    if int(true_counts.max()) > total:
        raise InvalidObservation(
            f"{int(true_counts.max())} samples are said to have a label, for "
            f"{_size_of(observation)}: they must agree"
        )


def _size_of(observation: Observation) -> str:
    """The number of samples, in the terms that it was told in."""
    if observation.instances is not None:
        return f"{observation.instances} instances"
    steps = f" x {observation.local_steps} steps" if observation.local_steps > 1 else ""
    if observation.training.epochs > 1:
        steps += f" / {observation.training.epochs} epochs"
    return f"a batch size of {observation.batch_size}{steps}"


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()
