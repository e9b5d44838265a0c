"""Run one audit: restore the labels of an update, score them, and judge the result."""

import time
from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from labelleak.attacks import restore
from labelleak.audit.fit import flag_misfit
from labelleak.audit.record import AuditRecord
from labelleak.audit.verdict import judge
from labelleak.errors import InvalidObservation
from labelleak.metrics import score
from labelleak.observation import Observation


def audit_observation(
    observation: Observation,
    attack: str = "auto",
    *,
    true_counts: Int[Tensor, " classes"] | None = None,
    threshold: float | None = None,
    time_limit: float | None = None,
    source: Mapping[str, Any] | None = None,
    **hyper_parameters: object,
) -> AuditRecord:
    """Restore the labels of one update, score them, and judge the result.

    The attack never sees the true counts: they are only compared with its result.

    Args:
        observation: What the server sees.
        attack: Registered name, or ``"auto"``.
        true_counts: The auditor's own counts, int64, shape (classes,), when known.
        threshold: Largest accuracy that is acceptable, in [0, 1]; needs `true_counts`.
        time_limit: Seconds after which an attack ends its search, see `labelleak.restore`.
        source: Where the observation is from, for the record.
        **hyper_parameters: Keyword arguments of the attack.

    Returns:
        The record.

    Raises:
        InvalidObservation: The true counts do not sum to the number of instances, or a threshold
            comes without them or is not in [0, 1].
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
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise InvalidObservation(
            f"threshold {threshold}: it is a share of the labels, from 0 to 1 (not percent)"
        )
    if threshold is not None and true_counts is None:
        raise InvalidObservation("a threshold on accuracy needs the true labels to measure it")
    if observation.loss.is_multi_label:
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
    # Where no sample has any label there is nothing to restore, and no share of it.
    scored = score(found, true_counts) if true_counts is not None and true_counts.any() else None
    verdict, reason = judge(found, scored, threshold)
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
        flags=[{"name": flag.name.lower(), "text": flag.text} for flag in found.flags],
        true_counts=_listed(true_counts),
        score=None if scored is None else scored.as_dict(),
        score_rounded=None
        if scored is None or true_counts is None or found.rounded is None
        else score(found, true_counts, use="rounded").as_dict(),
        threshold=threshold,
        verdict=verdict.value,
        reason=reason,
        seconds=seconds,
        source=dict(source or {}),
    )


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
