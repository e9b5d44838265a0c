"""The record of one audit: what was observed and restored, how it scored, and the verdict."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labelleak._version import __version__
from labelleak.audit.verdict import Verdict
from labelleak.errors import UnreadableFile
from labelleak.storage import read_json

SCHEMA = "labelleak/audit/1"


@dataclass(frozen=True)
class AuditRecord:
    """The record of one audit; it holds numbers, strings, lists and dicts only, as JSON does.

    Attributes:
        attack: Name of the attack that gave the result.
        classes: Number of classes C.
        features: Width m of the embedding, the head's input.
        head: Name of the final linear layer, or None.
        batch_size: Number of samples in one local step, or None.
        local_steps: Number of local steps.
        present: Classes that were found in the batch, ascending.
        counts: Restored counts per class, or None.
        rounded: Counts before the attack made them sum to the number of instances, or None.
        proportions: Restored share per class, where there are no counts; else None.
        certified: Whether the counts are proven.
        flags: Name and text of every flag, what to do about it, and options for that.
        true_counts: The auditor's own counts, or None.
        score: Metrics of ``counts`` against ``true_counts``, or None.
        score_rounded: Metrics of ``rounded``, which published figures are of, or None.
        threshold: Accuracy or advantage above which the update gives away too much, or None.
        verdict: Value of a `Verdict`.
        reason: The reason for the verdict, in one sentence.
        seconds: Time that the attack took, in seconds.
        source: Where the observation is from: files, kind, and what was told of training and loss.
        measure: What the update was judged by, see `labelleak.audit.Rule`; accuracy in records
            that are older than the other measures.
        floor: The smallest count that may be told, for ``"small-cells"``.
        prior: Public share of each class, for the best guess, or None for even ones.
        limit: The limit in words.
        intervals: 95 % interval of every count, or of every share where there are no counts; None
            where the attack gives none.
        expected: What the attack tells by its own account, where there are no true labels, see
            `labelleak.audit.expected_score`; else None.
        hidden: Number of classes with fewer than `floor` samples, or none; None without true
            labels.
        ceiling: The best that attacks of this kind can reach, see `labelleak.audit.Ceiling`, where
            it was computed; else None.
        samples: Number of samples that the update is made of, or None where it is not known.
        version: Version of labelleak that wrote the record.
        schema: Name and version of this format.

    Examples:
        >>> import torch
        >>> from labelleak import Head, HeadGradient, LocalTraining, Observation
        >>> from labelleak.audit import audit_observation
        >>> gradient = HeadGradient(torch.ones(3, 2), torch.tensor([-0.5, 0.2, 0.3]))
        >>> seen = Observation(Head(torch.zeros(3, 2), torch.zeros(3)), gradient)
        >>> audit_observation(seen, "gradinversion").attack
        'gradinversion'
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
    measure: str = "accuracy"
    floor: int = 10
    prior: list[float] | None = None
    limit: str = ""
    intervals: list[list[float]] | None = None
    expected: dict[str, Any] | None = None
    hidden: int | None = None
    ceiling: dict[str, Any] | None = None
    samples: int | None = None
    version: str = __version__
    schema: str = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)

    @property
    def exit_status(self) -> int:
        """Exit status of the command line for this verdict."""
        return Verdict(self.verdict).exit_status


def read_record(path: Path | str) -> dict[str, Any]:
    """Read the record of an audit from a file.

    Args:
        path: A JSON file, as `labelleak audit --output` writes it.

    Returns:
        The fields of `AuditRecord` by name; their values are not checked.

    Raises:
        UnreadableFile: The file holds no record, or one of another schema version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UnreadableFile(f"{path}: is no audit record of schema {SCHEMA!r}")
    return content
