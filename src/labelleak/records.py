"""One audit as data: what was observed, what was restored, how it scored, and the verdict."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from labelleak._version import __version__
from labelleak.attacks import restore
from labelleak.errors import InvalidObservation, UnreadableFile
from labelleak.metrics import Score, score
from labelleak.observation import Observation
from labelleak.restoration import Restoration

SCHEMA = "labelleak/audit/1"


class Verdict(Enum):
    """Outcome of an audit; the value stands in the record."""

    AUDITED = "audited"
    OVER_THRESHOLD = "over threshold"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_status(self) -> int:
        """Exit status of the command line: 0, 1 or 3 (2 is for unusable input)."""
        return {Verdict.AUDITED: 0, Verdict.OVER_THRESHOLD: 1, Verdict.INCONCLUSIVE: 3}[self]


@dataclass(frozen=True)
class AuditRecord:
    """The record of one audit, ready for JSON: numbers, strings, lists and dicts only.

    Attributes:
        attack: Attack that spoke.
        classes: Number of classes C.
        features: Width of the embedding m.
        head: Name of the final linear layer, or None.
        batch_size: Number of samples in one local step, or None.
        local_steps: Number of local steps.
        present: Restored present classes, ascending.
        counts: Restored counts per class, or None.
        rounded: The attack's counts before their sum was repaired, or None.
        proportions: Restored share per class, or None; given where there are no counts.
        certified: Whether the counts are proven.
        flags: Name and text of every flag.
        true_counts: The auditor's own counts, or None.
        score: Metrics of ``counts`` against ``true_counts``, or None.
        score_rounded: The same of ``rounded``, comparable with published figures, or None.
        threshold: Accuracy above which the update gives away too much, or None.
        verdict: Value of a `Verdict`.
        reason: Why, in one sentence.
        seconds: Time the attack took.
        source: Where the observation came from: files, kind, learning rate.
        version: Version of labelleak that wrote it.
        schema: Name and version of this format.
    """

    attack: str
    classes: int
    features: int
    head: str | None
    batch_size: int | None
    local_steps: int
    present: list[int]
    counts: list[int] | None
    rounded: list[int] | None
    proportions: list[float] | None
    certified: bool
    flags: list[dict[str, str]]
    true_counts: list[int] | None
    score: dict[str, float | bool | None] | None
    score_rounded: dict[str, float | bool | None] | None
    threshold: float | None
    verdict: str
    reason: str
    seconds: float
    source: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    schema: str = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)

    @property
    def exit_status(self) -> int:
        """Exit status of the command line for this verdict."""
        return Verdict(self.verdict).exit_status


def audit(
    observation: Observation,
    attack: str = "auto",
    *,
    true_counts: Int[Tensor, " classes"] | None = None,
    threshold: float | None = None,
    source: Mapping[str, Any] | None = None,
) -> AuditRecord:
    """Restore the labels of one update and judge what that means.

    The true counts meet the result in the score alone; the attack never sees them.

    Args:
        observation: What the server sees.
        attack: Registered name, or ``"auto"``.
        true_counts: The auditor's own counts, int64, shape (classes,), when known.
        threshold: Largest accuracy that is acceptable, in [0, 1]; needs `true_counts`.
        source: Where the observation came from, for the record.

    Returns:
        The record.

    Raises:
        InvalidObservation: The true counts do not sum to the number of instances, or a threshold
            comes without them.
        MissingKnowledge: The observation lacks what the attack needs.
    """
    total = observation.num_instances
    if threshold is not None and true_counts is None:
        raise InvalidObservation(
            "a threshold on accuracy needs the true labels to measure it (--labels FILE)"
        )
    if true_counts is not None and total is not None and int(true_counts.sum()) != total:
        steps = f" x {observation.local_steps} steps" if observation.local_steps > 1 else ""
        raise InvalidObservation(
            f"{int(true_counts.sum())} true labels for a batch size of "
            f"{observation.batch_size}{steps}: they must agree"
        )
    start = time.perf_counter()
    found = restore(observation, attack)
    seconds = time.perf_counter() - start
    scored = None if true_counts is None else score(found, true_counts)
    verdict, reason = _judge(found, scored, threshold)
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
        if true_counts is None or found.rounded is None
        else score(found, true_counts, use="rounded").as_dict(),
        threshold=threshold,
        verdict=verdict.value,
        reason=reason,
        seconds=seconds,
        source=dict(source or {}),
    )


def _judge(
    found: Restoration, scored: Score | None, threshold: float | None
) -> tuple[Verdict, str]:
    doubts = "; ".join(flag.text for flag in found.flags) if found.unreliable else ""
    if threshold is not None and scored is not None:
        if scored.accuracy is None:
            return Verdict.INCONCLUSIVE, (
                f"{found.attack} restored no counts here, so there is no accuracy to compare"
            )
        if scored.accuracy > threshold:
            return Verdict.OVER_THRESHOLD, (
                f"{scored.accuracy:.1%} of the labels were restored, above {threshold:.1%}"
            )
        if doubts:
            return Verdict.INCONCLUSIVE, (
                f"{scored.accuracy:.1%} of the labels were restored, at or under {threshold:.1%}, "
                f"but this attack's failure proves nothing here: {doubts}"
            )
        return Verdict.AUDITED, (
            f"{scored.accuracy:.1%} of the labels were restored, at or under {threshold:.1%}"
        )
    if doubts:
        return Verdict.INCONCLUSIVE, f"the restored labels are not to be relied on: {doubts}"
    return Verdict.AUDITED, f"{found.attack} restored what the update gives away"


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UnreadableFile: The place cannot be written to.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UnreadableFile(f"{path}: cannot be written: {error.strerror}") from None


def read_record(path: Path | str) -> dict[str, Any]:
    """Read an audit record back.

    Raises:
        UnreadableFile: It is no record, or of another schema version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except ValueError:
        raise UnreadableFile(f"{path}: is not JSON") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UnreadableFile(f"{path}: is no audit record of schema {SCHEMA!r}")
    return content
