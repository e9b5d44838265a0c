"""The policy of a site: how much of the labels an update may give away, and what to do above."""

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from labelleak.attacks import list_attacks
from labelleak.audit.record import AuditRecord
from labelleak.audit.verdict import Verdict
from labelleak.errors import UnreadableFile
from labelleak.federated.allow import Allow
from labelleak.storage import read_whole

Action = Literal["record", "warn", "refuse"]
Measure = Literal["accuracy", "exact"]
RoundVerdict = Literal["within", "over", "inconclusive", "failed"]

_DEFAULT_THRESHOLD = 0.5
_MOST_BYTES = 2**18


@dataclass(frozen=True)
class Policy:
    """What may leave, and what happens to an update that gives away more.

    Attributes:
        action: When the limit is passed: ``"record"`` it only, ``"warn"`` as well, or ``"refuse"``
            to send. A refusing policy fails closed: an audit that fails or is inconclusive sends
            nothing either.
        measure: ``"accuracy"``: the share of the labels that were restored. ``"exact"``: whether
            all counts are right, or certified where no true labels are at hand.
        threshold: For ``"accuracy"``, the largest share that may leave, 0 to 1; 0.5 unless said
            otherwise. None for ``"exact"``.
        attack: Registered name of the attack, or ``"auto"``.
        time_limit: Seconds after which an attack that searches stops, positive. The default keeps
            an audit short beside the training of an epoch.
        records: Folder of the records, made when the first is written; a relative one lies in the
            folder that the process works in.
        allow: What a message may hold beside the weights. A refusing policy sends nothing else.

    Raises:
        ValueError: A value is impossible; the message names the key.

    Examples:
        >>> Policy(action="refuse", threshold=0.3).limit
        'at most 30.0% of the labels'
    """

    action: Action = "warn"
    measure: Measure = "accuracy"
    threshold: float | None = None
    attack: str = "auto"
    time_limit: float = 2.0
    records: str = "labelleak-records"
    allow: Allow = field(default_factory=Allow)

    def __post_init__(self) -> None:
        _check_choice("action", self.action, get_args(Action))
        _check_choice("measure", self.measure, get_args(Measure))
        _check_choice("attack", self.attack, ("auto", *list_attacks()))
        _check_number("time_limit", self.time_limit, "a positive number of seconds")
        if not 0 < self.time_limit < math.inf:
            raise ValueError(f"time_limit = {self.time_limit}: a positive number of seconds")
        if not isinstance(self.records, str) or not self.records or "\0" in self.records:
            raise ValueError(f"records = {self.records!r}: the name of a folder is needed")
        if self.measure == "exact":
            if self.threshold is not None:
                raise ValueError('threshold: goes with measure = "accuracy" only; leave it out')
            return
        if self.threshold is None:
            object.__setattr__(self, "threshold", _DEFAULT_THRESHOLD)
            return
        share = "a share of the labels, from 0 to 1 (not percent)"
        _check_number("threshold", self.threshold, share)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold}: {share}")

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.measure == "exact":
            return "not all counts exactly"
        return f"at most {self.threshold:.1%} of the labels"

    def as_dict(self) -> dict[str, Any]:
        """The policy as plain data, as it stands in a record: the usual allow-list is left out."""
        content = asdict(replace(self, allow=Allow()))
        del content["allow"]
        return content if self.allow == Allow() else {**content, "allow": self.allow.as_dict()}

    def judge(self, found: AuditRecord) -> tuple[RoundVerdict, str]:
        """What an audit means under this policy.

        Args:
            found: The audit, made with this policy's threshold where it has one and there are true
                labels.

        Returns:
            The verdict, and why in one sentence.
        """
        inconclusive = found.verdict == Verdict.INCONCLUSIVE.value
        proven = f"{found.attack} restored the labels, and they are proven"
        if found.score is None:
            if found.certified and (self.measure == "exact" or (self.threshold or 0.0) < 1.0):
                return "over", f"{proven}; the policy allows {self.limit}"
            if self.measure == "accuracy":
                return "inconclusive", (
                    f"{found.reason}; the policy allows {self.limit}, and without the true labels "
                    "there is nothing to measure that by"
                )
        elif self.measure == "accuracy":
            if found.verdict == Verdict.OVER_THRESHOLD.value:
                return "over", found.reason
            return ("inconclusive" if inconclusive else "within"), found.reason
        elif found.score["exact"]:
            return "over", f"{found.attack} restored all counts exactly"
        elif found.certified:
            # Proven, and other than the labels given: those are not what was trained on.
            return "over", f"{proven}; {found.reason}"
        if inconclusive or found.counts is None:
            return "inconclusive", found.reason
        return "within", found.reason


def read_policy(path: Path | str) -> Policy:
    """Read a policy from a TOML file; what it does not say is as in ``Policy()``.

    Args:
        path: The file.

    Returns:
        The policy.

    Raises:
        UnreadableFile: There is no such file, it is no TOML, or a key or value is wrong; the
            message names file and key.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "policy.toml")
        >>> _ = path.write_text('action = "refuse"')
        >>> read_policy(path).action
        'refuse'
    """
    try:
        content = tomllib.loads(read_whole(path, _MOST_BYTES).decode())
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{path}: is not TOML: {error!s:.500}") from None
    known = [field.name for field in fields(Policy)]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise UnreadableFile(
            f"{path}: {unknown[0]!r:.80} is no key of a policy: {', '.join(known)}"
        )
    try:
        if "allow" in content:
            content["allow"] = Allow.of(content["allow"])
        return Policy(**content)
    except ValueError as error:
        # A value from the file may be as long as that.
        raise UnreadableFile(f"{path}: {error!s:.500}") from None


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{key} = {value!r}: choose {', '.join(choices)}")


def _check_number(key: str, value: object, needed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} = {value!r}: {needed} is needed")
