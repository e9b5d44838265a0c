"""The policy of a site: how much of the labels an update may give away, and what to do above."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from labelleak.attacks import find_attack
from labelleak.audit.record import AuditRecord
from labelleak.audit.rule import Measure, Rule
from labelleak.audit.verdict import Verdict
from labelleak.cells import USUAL_FLOOR
from labelleak.errors import UnreadableFile
from labelleak.federated.allow import Allow
from labelleak.storage import read_whole

Action = Literal["record", "warn", "refuse"]
RoundVerdict = Literal["within", "over", "inconclusive", "failed"]

ROUND_VERDICTS: dict[Verdict, RoundVerdict] = {
    Verdict.AUDITED: "within",
    Verdict.OVER_THRESHOLD: "over",
    Verdict.INCONCLUSIVE: "inconclusive",
}
"""What the verdict of an audit is called where a policy says what may leave."""

_MOST_BYTES = 2**18


@dataclass(frozen=True)
class Policy:
    """What may leave, and what happens to an update that gives away more.

    Attributes:
        action: When the limit is passed: ``"record"`` it only, ``"warn"`` as well, or ``"refuse"``
            to send. A refusing policy fails closed: an audit that fails or is inconclusive sends
            nothing either.
        measure: ``"advantage"``, ``"accuracy"``, ``"small-cells"`` or ``"exact"``, see
            `labelleak.audit.Rule`. None: accuracy where there is a threshold, as in policies older
            than the other measures; else advantage.
        threshold: For advantage and accuracy, the largest share that may leave, 0 to 1; 0.5 unless
            said otherwise. None for the others.
        attack: Registered name of the attack, or ``"auto"``.
        time_limit: Seconds after which an attack that searches stops, positive. The default keeps
            an audit short beside the training of an epoch.
        records: Folder of the records, made when the first is written; a relative one lies in the
            folder that the process works in.
        allow: What a message may hold beside the weights. A refusing policy sends nothing else.
        floor: For small cells, the smallest count that may be told, at least 2.
        prior: For the best guess, the share of each class as the public knows it; None for the same
            share of each.
        across_rounds: Judge what all rounds of a run tell together of a client's labels as well,
            see `RunningAnswer`: the graver of the two verdicts holds.

    Raises:
        ValueError: A value is impossible; the message names the key.

    Examples:
        >>> Policy(action="refuse", threshold=0.3).limit
        'at most 30.0% of the labels'
    """

    action: Action = "warn"
    measure: Measure | None = None
    threshold: float | None = None
    attack: str = "auto"
    time_limit: float = 2.0
    records: str = "labelleak-records"
    allow: Allow = field(default_factory=Allow)
    floor: int = USUAL_FLOOR
    prior: Sequence[float] | None = None
    across_rounds: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.across_rounds, bool):
            raise ValueError(f"across_rounds = {self.across_rounds!r}: true or false is needed")
        _check_choice("action", self.action, get_args(Action))
        if not isinstance(self.attack, str):
            raise ValueError(f"attack = {self.attack!r}: the name of an attack is needed")
        if self.attack != "auto":
            _check_attack_name(self.attack)
        _check_number("time_limit", self.time_limit, "a positive number of seconds")
        if not 0 < self.time_limit < math.inf:
            raise ValueError(f"time_limit = {self.time_limit}: a positive number of seconds")
        if not isinstance(self.records, str) or not self.records or "\0" in self.records:
            raise ValueError(f"records = {self.records!r}: the name of a folder is needed")
        rule = self.rule.with_usual_limit()
        for key in ("measure", "threshold", "prior"):
            object.__setattr__(self, key, getattr(rule, key))

    @property
    def rule(self) -> Rule:
        """What is measured, and how much of it may leave."""
        return Rule(self.measure, self.threshold, self.floor, self.prior)

    @property
    def limit(self) -> str:
        """The limit in words."""
        return self.rule.limit

    def as_dict(self) -> dict[str, Any]:
        """The policy as plain data, as it stands in a record; what is as usual is left out."""
        content = asdict(replace(self, allow=Allow()))
        del content["allow"]
        if self.measure != "small-cells":
            del content["floor"]
        if self.prior is None:
            del content["prior"]
        if not self.across_rounds:
            del content["across_rounds"]
        return content if self.allow == Allow() else {**content, "allow": self.allow.as_dict()}

    def judge(self, found: AuditRecord) -> tuple[RoundVerdict, str]:
        """What an audit means under this policy.

        Args:
            found: The audit, made by this policy's `rule`.

        Returns:
            The verdict, and why in one sentence.
        """
        return ROUND_VERDICTS[Verdict(found.verdict)], found.reason


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


def _check_attack_name(name: str) -> None:
    try:
        find_attack(name)
    except ValueError as error:
        raise ValueError(f"attack = {name!r}: {error}") from None


def _check_number(key: str, value: object, needed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} = {value!r}: {needed} is needed")
