"""The running answer of a client: what the rounds of a run tell together of its labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labelleak.attacks import combine
from labelleak.audit.judging import judged_by
from labelleak.audit.record import AuditRecord
from labelleak.audit.recorded import recorded_counts, recorded_restoration
from labelleak.audit.rule import Rule
from labelleak.federated.occasion import Occasion
from labelleak.federated.policy import ROUND_VERDICTS, RoundVerdict
from labelleak.federated.replies import text_of
from labelleak.federated.rounds import client_records
from labelleak.restoration import Flag, Restoration

_GRAVITY: tuple[RoundVerdict, ...] = ("within", "inconclusive", "failed", "over")
_MOST_NAMED = 4


@dataclass(frozen=True)
class RunningAnswer:
    """What the rounds of a run so far tell together of one client's labels.

    Attributes:
        verdict: By the rule of the policy: ``"within"``, ``"over"`` or ``"inconclusive"``;
            ``"failed"`` where the client's earlier records cannot be relied on. Never ``"within"``
            where a round that was sent is left out.
        reason: Why, in one sentence.
        rounds: Numbers of the rounds that are combined.
        left_out: Rounds that were sent and cannot be combined: ``round`` and ``why`` of each.
        counts: Counts of all these rounds together, see `labelleak.combine`, or None.
        intervals: Their 95 % intervals, or None.
        certified: Whether the counts are proven.
        flags: Names of the flags of the combination.
        score: Metrics of the counts where the true ones are known, else None.
        expected: What is told by the attacks' own account where they are not, else None.

    Examples:
        >>> import tempfile, torch
        >>> from labelleak import LocalTraining
        >>> from labelleak.federated import Auditor, Occasion, Policy, train_locally
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> recipe = LocalTraining(learning_rate=0.1, batch_size=8)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> sent = train_locally(model, inputs, labels, recipe, classes=5)
        >>> auditor = Auditor(Policy(attack="pooled", records=tempfile.mkdtemp()))
        >>> for number in (1, 2):
        ...     decision = auditor.audit_update(
        ...         sent.before, sent.after, recipe, Occasion(number, "a"), instances=8
        ...     )
        >>> decision.record.known["rounds"], decision.record.known["counts"]
        ([1, 2], [3, 2, 0, 2, 1])
    """

    verdict: RoundVerdict
    reason: str
    rounds: list[int] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    counts: list[int] | None = None
    intervals: list[list[float]] | None = None
    certified: bool = False
    flags: list[str] = field(default_factory=list)
    score: dict[str, Any] | None = None
    expected: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self)


def running_answer(
    folder: Path | str, occasion: Occasion, found: AuditRecord, rule: Rule
) -> RunningAnswer:
    """Combine an audit of weights with those of the client's earlier rounds in the same run.

    Earlier rounds are read from the client's records, as the process that audits may be another one
    in every round. Rounds that were refused did not leave, and are not counted.

    Args:
        folder: The folder of the records.
        occasion: What this audit is written down under.
        found: This audit.
        rule: What is measured, and how much of it may leave.
    """
    try:
        records = client_records(folder, occasion.client)
        # Of a round that is written down twice the newest counts: the same data tell nothing anew.
        earlier = {one["round"]: one for one in records if _belongs(one, occasion)}
        earlier.pop(occasion.round, None)
        return _together([*earlier.values()], occasion.round, found.as_dict(), rule)
    except Exception as problem:  # whatever the records hold
        return RunningAnswer("failed", f"the earlier records do not serve: {text_of(problem)}")


def in_all(
    verdict: RoundVerdict, reason: str, answer: RunningAnswer | None
) -> tuple[RoundVerdict, str]:
    """The graver of a round's own verdict and that of all rounds together.

    Args:
        verdict: Of the round alone.
        reason: Of the round alone.
        answer: What all rounds tell together; None where updates of this kind are not combined.
    """
    if answer is None:
        answer = RunningAnswer(
            "inconclusive", "what rounds tell together is not known of updates of this kind"
        )
    if _GRAVITY.index(answer.verdict) > _GRAVITY.index(verdict):
        return answer.verdict, answer.reason
    return verdict, reason


def _belongs(record: dict[str, Any], occasion: Occasion) -> bool:
    """Whether a record is of the same run and place in the client, and its update was sent."""
    keys = ("run", "label", "framework", "task")
    alike = all(record[key] == getattr(occasion, key) for key in keys)
    return alike and record["action"] != "refused"


def _together(
    earlier: Sequence[dict[str, Any]], number: int, now: dict[str, Any], rule: Rule
) -> RunningAnswer:
    kept: list[Restoration] = []
    rounds, left_out = [], []
    for at, audit in [*((one["round"], one["audit"]) for one in earlier), (number, now)]:
        one = _fitting(audit, now)
        if isinstance(one, str):
            left_out.append({"round": at, "why": one})
        else:
            kept.append(one)
            rounds.append(at)
    missing = "; ".join(f"round {one['round']}: {one['why']}" for one in left_out[:_MOST_NAMED])
    missing += f"; and {more} more" if (more := len(left_out) - _MOST_NAMED) > 0 else ""
    if not kept:
        return RunningAnswer(
            "inconclusive", f"no round can be combined with others ({missing})", left_out=left_out
        )
    found = combine(kept)
    true = now["true_counts"]
    counts = None if true is None else recorded_counts(true, now["classes"])
    judged = judged_by(found, counts, rule)
    verdict, reason = ROUND_VERDICTS[judged.verdict], f"{_named(rounds)}: {judged.reason}"
    if left_out:
        verdict = "inconclusive" if verdict == "within" else verdict
        reason = f"{reason}; left out are {missing}"
    return RunningAnswer(
        verdict,
        reason,
        rounds,
        left_out,
        counts=None if found.counts is None else found.counts.tolist(),
        intervals=None if found.intervals is None else found.intervals.tolist(),
        certified=found.certified,
        flags=[flag.name.lower() for flag in found.flags],
        score=None if judged.scored is None else judged.scored.as_dict(),
        expected=judged.expected,
    )


def _fitting(audit: dict[str, Any] | None, now: dict[str, Any]) -> Restoration | str:
    """What a round restored of the data of the present one, or why that cannot be combined."""
    if audit is None:
        return "there is no audit of it"
    if any(audit.get(key) != now[key] for key in ("classes", "samples")):
        return "it is of other data, by their number"
    own, true = audit.get("true_counts"), now["true_counts"]
    if own is not None and true is not None and own != true:
        return "it is of other data, by the labels"
    found = recorded_restoration(audit)
    if found is None:
        return "its attack gives no counts with standard errors"
    if Flag.LABELS_DO_NOT_FIT in found.flags:
        return "it contradicts the labels given"
    return found


def _named(rounds: list[int]) -> str:
    if len(rounds) == 1:
        return f"round {rounds[0]} alone"
    if len(rounds) > _MOST_NAMED:
        return f"{len(rounds)} rounds from {min(rounds)} to {max(rounds)} together"
    return f"rounds {', '.join(map(str, rounds[:-1]))} and {rounds[-1]} together"
