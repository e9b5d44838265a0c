"""One audit as data: what was observed, what was restored, how it scored, and the verdict."""

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


def read_record(path: Path | str) -> dict[str, Any]:
    """Read an audit record back.

    Raises:
        UnreadableFile: It is no record, or of another schema version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UnreadableFile(f"{path}: is no audit record of schema {SCHEMA!r}")
    return content
