"""One audit as data: what was observed, what was restored, how it scored, and the verdict."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
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
    time_limit: float | None = None,
    source: Mapping[str, Any] | None = None,
    **hyper_parameters: object,
) -> AuditRecord:
    """Restore the labels of one update and judge what that means.

    The true counts meet the result in the score alone; the attack never sees them.

    Args:
        observation: What the server sees.
        attack: Registered name, or ``"auto"``.
        true_counts: The auditor's own counts, int64, shape (classes,), when known.
        threshold: Largest accuracy that is acceptable, in [0, 1]; needs `true_counts`.
        time_limit: Seconds after which an attack that searches ends, see `labelleak.restore`.
        source: Where the observation came from, for the record.
        **hyper_parameters: Keyword arguments of the attack.

    Returns:
        The record.

    Raises:
        InvalidObservation: The true counts do not sum to the number of instances, or a threshold
            comes without them or is not in [0, 1].
        ValueError: The time limit is not positive.
        MissingKnowledge: The observation lacks what the attack needs.
    """
    total = observation.num_instances
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise InvalidObservation(
            f"threshold {threshold}: it is a share of the labels, from 0 to 1 (not percent)"
        )
    if threshold is not None and true_counts is None:
        raise InvalidObservation("a threshold on accuracy needs the true labels to measure it")
    if true_counts is not None and total is not None and int(true_counts.sum()) != total:
        steps = f" x {observation.local_steps} steps" if observation.local_steps > 1 else ""
        if observation.local_epochs > 1:
            steps += f" / {observation.local_epochs} epochs"
        raise InvalidObservation(
            f"{int(true_counts.sum())} true labels for a batch size of "
            f"{observation.batch_size}{steps}: they must agree"
        )
    start = time.perf_counter()
    found = restore(observation, attack, time_limit=time_limit, **hyper_parameters)
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
    """The verdict and why; a result under which the labels would be safe there is none."""
    doubts = "; ".join(flag.text for flag in found.flags) if found.unreliable else ""
    if scored is not None and scored.accuracy is not None:
        restored = f"{found.attack} restored {scored.accuracy:.1%} of the labels"
        if threshold is None:
            if doubts:
                return Verdict.INCONCLUSIVE, f"{restored}, and is not to be relied on: {doubts}"
            return Verdict.AUDITED, f"{restored}; no threshold was given to judge that by"
        if scored.accuracy > threshold:
            return Verdict.OVER_THRESHOLD, f"{restored}, above {threshold:.1%}"
        if doubts:
            return Verdict.INCONCLUSIVE, (
                f"{restored}, at or under {threshold:.1%}, but this attack's failure proves "
                f"nothing here: {doubts}"
            )
        return Verdict.AUDITED, (
            f"{restored}, at or under {threshold:.1%}; a stronger attack may restore more"
        )
    if threshold is not None:
        return Verdict.INCONCLUSIVE, (
            f"{found.attack} restored no counts here, so there is no accuracy to compare"
        )
    if doubts:
        return Verdict.INCONCLUSIVE, f"the restored labels are not to be relied on: {doubts}"
    return Verdict.AUDITED, f"{_restored(found)}; no verdict of an audit is proof of safety"


def _restored(found: Restoration) -> str:
    """What there is, where no true labels tell how much of it is right."""
    present = int(found.present.sum())
    classes = f"{present} {'class' if present == 1 else 'classes'}"
    if found.counts is None:
        what = "which classes are present" if found.proportions is None else "the share of each"
        return f"{found.attack} restored {what}: {classes}, not compared with true labels"
    amount = int(found.counts.sum())
    labels = f"{amount} {'label' if amount == 1 else 'labels'} of {classes}"
    if found.certified:
        return f"{found.attack} restored {labels}, and they are proven: they rebuild the gradient"
    return f"{found.attack} restored {labels}, not compared with true ones"


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()


def read_labels(path: Path | str, classes: int) -> Int[Tensor, " batch"]:
    """The auditor's own labels from a text file: integers apart by spaces, commas or line breaks.

    Args:
        path: The file, UTF-8, with or without a byte order mark; empty lines do not count.
        classes: Number of classes C.

    Returns:
        int64, shape (batch,), in the order of the file.

    Raises:
        UnreadableFile: There is no such file, or it holds anything else than integers from 0 to
            C - 1; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: is no text file of labels") from None
    labels = []
    for number, line in enumerate(text.split("\n"), start=1):
        for word in line.replace(",", " ").split():
            # Any more digits, and Python would refuse to read them.
            plain = word.isascii() and word.isdigit() and len(word) <= 18
            if not plain or int(word) >= classes:
                raise UnreadableFile(
                    f"{path}, line {number}: {word[:40]!r} is no label: integers from 0 to "
                    f"{classes - 1} are needed"
                )
            labels.append(int(word))
    if not labels:
        raise UnreadableFile(f"{path}: holds no labels")
    return torch.tensor(labels)


def check_writable(path: Path | str, inputs: Sequence[Path | str] = ()) -> None:
    """Make sure, before any work, that `write_whole` can write a file.

    Args:
        path: The file to be; it may be there already.
        inputs: Files that must stay as they are.

    Raises:
        UnreadableFile: The file cannot be written, or is one of the inputs.
    """
    with _writing(path) as (place, partial):
        for other in map(Path, inputs):
            if place.exists() and other.exists() and place.samefile(other):
                raise UnreadableFile(f"{path}: is read here, and would be overwritten")
        partial.touch()
        partial.unlink()


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        content: Its content; text is written as UTF-8, line breaks as they are.

    Raises:
        UnreadableFile: It cannot be written.
    """
    with _writing(path) as (place, partial):
        # A name of a file, on Linux, may hold bytes that are no UTF-8.
        data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
        partial.write_bytes(data)
        partial.replace(place)


@contextmanager
def _writing(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """Where a file really is, and where its content is gathered first; errors in one line."""
    try:
        # What a link leads to is written, and the link stays.
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            raise ValueError("it is a folder" if place.is_dir() else "it is no regular file")
        partial = place.with_name(f".labelleak-{os.getpid()}.partial")
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: cannot be written: {_reason(error)}") from None
    try:
        yield place, partial
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be written: {_reason(error)}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UnreadableFile: The place cannot be written to.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_record(path: Path | str) -> dict[str, Any]:
    """Read an audit record back.

    Raises:
        UnreadableFile: It is no record, or of another schema version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UnreadableFile(f"{path}: is no audit record of schema {SCHEMA!r}")
    return content


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        UnreadableFile: There is no such file, or it holds anything else.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UnreadableFile(f"{path}: is not JSON") from None
