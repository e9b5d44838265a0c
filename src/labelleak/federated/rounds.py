"""Records of audits in a federation: a line of JSON each, in files that only ever grow."""

import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import UnionType
from typing import Any, Literal
from urllib.parse import quote

from labelleak._version import __version__
from labelleak.errors import UnreadableFile
from labelleak.federated.policy import RoundVerdict
from labelleak.storage import append_line, read_whole, what_is_at

SCHEMA = "labelleak/round/1"

Taken = Literal["sent", "warned", "refused"]

_LONGEST_NAME = 80
# Of a client's file, where it is read beside its training.
_MOST_BYTES = 2**27
# What plain data the entries of a record may be.
_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("client", "label", "framework", "action", "verdict", "reason"), str),
    **dict.fromkeys(("run", "task", "time", "version"), str),
    **dict.fromkeys(("unaudited", "leaks"), list),
    "round": int,
    "policy": dict,
    "audit": dict | None,
    "known": dict | None,
}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class RoundRecord:
    """One client's update in one round: what it gave away, and what was done about it.

    It may hold the site's true counts, and stays in the site's own file.

    Attributes:
        round: Number of the round.
        client: Name of the client, or of the aggregate.
        label: Where in the client the audit stood, ``"before clipping"`` say; may be empty.
        framework: ``"flower"``, ``"nvflare"``, ``"opacus"``; may be empty.
        action: ``"sent"``, ``"warned"`` (sent, with a warning) or ``"refused"`` (nothing sent).
        verdict: ``"within"`` or ``"over"`` the policy's limit, ``"inconclusive"``, or ``"failed"``
            where there could be no audit of all that was to be sent.
        reason: Why, in one sentence.
        policy: The policy, see `Policy.as_dict`.
        audit: The audit record, schema ``labelleak/audit/1``, or None.
        known: What the rounds of this run so far tell together, see `RunningAnswer`, or None.
        error: What is wrong with the update or the audit, or None.
        epsilon: Of the differential privacy that the framework accounts for, or None.
        delta: The same.
        aggregate_of: Number of clients whose updates were added up before the audit, or None.
        run: The framework's own name or number of the run; empty where it has none.
        task: What was asked of the client, ``"train"`` or ``"evaluate"``; may be empty.
        unaudited: What left, or was to leave, without an audit and is not allowed by the policy:
            path of each entry, and what it is.
        leaks: What tells something of the labels by itself, whatever an attack restores:
            ``what``, ``where`` and ``why`` of each.
        seconds: Time of the whole audit.
        time: When the record was made, UTC, ISO 8601.
        version: Version of labelleak that wrote it.
        schema: Name and version of this format.

    Examples:
        >>> import tempfile
        >>> from labelleak.federated import Auditor, Occasion, Policy
        >>> auditor = Auditor(Policy(action="refuse", records=tempfile.mkdtemp()))
        >>> decision = auditor.failed("the reply is empty", Occasion(round=1, client="a"))
        >>> decision.send, decision.record.verdict
        (False, 'failed')
    """

    round: int
    client: str
    label: str
    framework: str
    action: Taken
    verdict: RoundVerdict
    reason: str
    policy: dict[str, Any]
    audit: dict[str, Any] | None = None
    known: dict[str, Any] | None = None
    error: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    aggregate_of: int | None = None
    run: str = ""
    task: str = ""
    unaudited: list[str] = field(default_factory=list)
    leaks: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    time: str = field(default_factory=_now)
    version: str = __version__
    schema: str = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data for JSON; a number that is not finite is None."""
        content = _finite(asdict(self))
        assert isinstance(content, dict)
        return content


def append_record(folder: Path | str, record: RoundRecord) -> Path:
    """Append a record to the client's file: a whole line, also where several processes write.

    Only the owner may read the file, and a folder that is made here: both may hold true counts.

    Args:
        folder: The folder of the records; made if it is not there.
        record: The record.

    Returns:
        The file.

    Raises:
        UnreadableFile: It cannot be written, or is a link or another user's file.

    Examples:
        >>> import tempfile
        >>> from labelleak.federated import Auditor, Occasion, Policy, append_record, read_rounds
        >>> folder = tempfile.mkdtemp()
        >>> decision = Auditor(Policy(records=folder)).failed("nothing came", Occasion(1, "a"))
        >>> path = append_record(folder, decision.record)
        >>> [record["verdict"] for record in read_rounds(folder)]
        ['failed', 'failed']
    """
    line = json.dumps(record.as_dict(), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    return append_line(folder, file_name(record.client), line)


def file_name(client: str) -> str:
    """Name of the file of a client's records, whatever the client calls itself."""
    # Lone surrogates are no UTF-8.
    plain = client.encode(errors="backslashreplace").decode()
    name = quote(plain, safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{sha256(plain.encode()).hexdigest()[:12]}"
    return f"client-{name}.jsonl"


def read_rounds(path: Path | str) -> list[dict[str, Any]]:
    """Read records back.

    Args:
        path: A file, or a folder whose ``.jsonl`` files are read in the order of their names.

    Returns:
        The records as plain data. A line that is none is left out with a warning: an interruption
        may have cut it off.

    Raises:
        UnreadableFile: There is no such file or folder, or nothing in it is a record.

    Examples:
        >>> import tempfile
        >>> from labelleak.federated import Auditor, Occasion, Policy, append_record, read_rounds
        >>> folder = tempfile.mkdtemp()
        >>> decision = Auditor(Policy(records=folder)).failed("nothing came", Occasion(1, "a"))
        >>> path = append_record(folder, decision.record)
        >>> [record["verdict"] for record in read_rounds(folder)]
        ['failed', 'failed']
    """
    path = Path(path)
    try:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    contents = {file: read_whole(file) for file in files}
    records = []
    for file, content in contents.items():
        for number, line in enumerate(content.split(b"\n"), start=1):
            record = _parse(line) if line.strip() else None
            if record is not None:
                records.append(record)
            elif line.strip():
                warnings.warn(f"{file}, line {number}: is no record, left out", stacklevel=2)
    if not records:
        raise UnreadableFile(f"{path}: holds no records of rounds (lines of schema {SCHEMA!r})")
    return records


def client_records(folder: Path | str, client: str) -> list[dict[str, Any]]:
    """One client's records, of which none may be missing or another's.

    Args:
        folder: The folder of the records.
        client: Name of the client.

    Returns:
        The records in the order in which they were written; none where there is no file yet.

    Raises:
        UnreadableFile: The file cannot be read or is larger than 128 MiB, or a line is no record of
            this client.
    """
    path = Path(folder, file_name(client))
    if not what_is_at(path):
        return []
    records = []
    for number, line in enumerate(read_whole(path, _MOST_BYTES).split(b"\n"), start=1):
        record = _parse(line) if line.strip() else None
        if record is not None and record["client"] == client:
            records.append(record)
        elif line.strip():
            what = "no record" if record is None else "a record of another client"
            raise UnreadableFile(f"{path}, line {number}: is {what}; move the file away")
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return None
    # Records of before there were these have no such entries.
    record = {"run": "", "task": "", "unaudited": [], "leaks": [], "known": None, **record}
    fits = all(isinstance(record.get(name), kinds) for name, kinds in _KINDS.items())
    return record if fits else None


def _finite(value: Any) -> Any:
    """Plain data, also of NumPy's and torch's numbers; None for what JSON has no number for."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
