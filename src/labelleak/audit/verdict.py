"""The verdict of an audit, and the reason for it in one sentence."""

from enum import Enum
from typing import Any

from labelleak.audit.rule import Rule
from labelleak.cells import count_bounds, small_cells
from labelleak.metrics import Score
from labelleak.restoration import UNRELIABLE, Flag, Restoration


class Verdict(Enum):
    """Outcome of an audit. The value is what the record holds.

    Examples:
        >>> [(verdict.value, verdict.exit_status) for verdict in Verdict]
        [('audited', 0), ('over threshold', 1), ('inconclusive', 3)]
    """

    AUDITED = "audited"
    OVER_THRESHOLD = "over threshold"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_status(self) -> int:
        """Exit status of `labelleak audit`: 0, 1 or 3."""
        return {Verdict.AUDITED: 0, Verdict.OVER_THRESHOLD: 1, Verdict.INCONCLUSIVE: 3}[self]


Judgment = tuple[Verdict, str]

_STRONGER = "a stronger attack may restore more"


def judge(
    found: Restoration,
    scored: Score | None,
    rule: Rule,
    *,
    expected: dict[str, Any] | None = None,
    hidden: int | None = None,
) -> Judgment:
    """Judge the result of an attack.

    No verdict says that the labels are safe: a stronger attack may restore more.

    Args:
        found: What the attack restored.
        scored: Its score against the true labels; None where they are not known.
        rule: What is measured, and how much of it may leave.
        expected: Where the true labels are not known, see `expected_score`.
        hidden: Where they are, the number of classes that a rule of small cells hides; without a
            score, all true counts are zero.

    Returns:
        The verdict, and the reason for it. The reason names flags, and does not explain them.
    """
    if Flag.BIAS_GIVES_NOTHING in found.flags:
        text = f"{Flag.BIAS_GIVES_NOTHING.text}; {_STRONGER}"
        # A limit is not known to be kept: nothing was measured of the weights.
        return Verdict.INCONCLUSIVE if rule.has_limit else Verdict.AUDITED, text
    if scored is None:
        judged = _without_labels(found, rule, expected)
        if hidden is not None and judged[0] is Verdict.AUDITED and rule.has_limit:
            return Verdict.INCONCLUSIVE, (
                f"{_restored(found)}; no sample has a label by those given, so there is no score"
            )
        return judged
    if Flag.LABELS_DO_NOT_FIT in found.flags:
        return _misfit(found, scored, rule)
    if rule.measure == "small-cells":
        return _by_cells(found, scored.small_cells_told, hidden or 0, rule)
    if scored.accuracy is None:
        if not rule.has_limit and not found.unreliable:
            return Verdict.AUDITED, f"{_restored(found)}; no verdict of an audit is proof of safety"
        return Verdict.INCONCLUSIVE, f"{_who(found)} restored no counts here, and so has no score"
    restored = _share(found, scored, rule)
    if rule.measure == "exact":
        if scored.exact:
            return Verdict.OVER_THRESHOLD, f"{_who(found)} restored all counts exactly"
        return _low(found, f"{restored}, and not every count")
    value = _measured(scored, rule)
    assert value is not None, "there are counts"
    if rule.threshold is None:
        doubts = _doubts_of_finding(found)
        if doubts:
            return Verdict.INCONCLUSIVE, f"{restored}; that is not to be relied on ({doubts})"
        return Verdict.AUDITED, (
            f"{restored}; no limit was set, so this is a finding, not a pass or a failure"
        )
    if value > rule.threshold:
        return Verdict.OVER_THRESHOLD, f"{restored}, above the limit of {rule.threshold:.1%}"
    if found.certified and scored.exact and _proof_is_over(found, rule):
        # Even counts are what a guess gets, too, but a guess does not know that it is right.
        return Verdict.OVER_THRESHOLD, f"{restored}, but the update proves them"
    return _low(found, f"{restored}, at or under the limit of {rule.threshold:.1%}")


def _who(found: Restoration) -> str:
    """The subject of a sentence about what was restored."""
    return "their combination" if found.attack == "combined" else f"attack {found.attack}"


def _measured(scored: Score, rule: Rule) -> float | None:
    """What the threshold is for; None without counts."""
    return scored.accuracy if rule.measure == "accuracy" else scored.relative_advantage


def _share(found: Restoration, scored: Score, rule: Rule) -> str:
    """What share of the labels is right, and how much of that a guess would get."""
    text = f"{_who(found)} restored {scored.accuracy:.1%} of the labels"
    if scored.guess is None or scored.relative_advantage is None:
        return text
    if rule.measure == "accuracy" and rule.threshold is not None:
        # What the limit is of comes last, and is not to be taken for the advantage.
        return f"{text} (a guess without the update gets {scored.guess:.1%})"
    text = f"{text}, where a guess without the update gets {scored.guess:.1%}"
    if scored.relative_advantage <= 0.0:
        return f"{text}: no advantage"
    return f"{text}: {scored.relative_advantage:.1%} of what the guess leaves open"


def _low(found: Restoration, text: str) -> Judgment:
    """A result under the limit: evidence of little, and of nothing where it is doubtful."""
    doubts = _doubts(found)
    if doubts:
        return Verdict.INCONCLUSIVE, (
            f"{text}, but this attack's failure proves nothing here ({doubts})"
        )
    return Verdict.AUDITED, f"{text}; {_STRONGER}"


def _by_cells(found: Restoration, told: int | None, hidden: int, rule: Rule) -> Judgment:
    rare = f"fewer than {rule.floor} samples, or none"
    if not hidden:
        return Verdict.AUDITED, f"no class has {rare}: there is nothing that the rule hides"
    one = hidden == 1
    them = f"the {'one class' if one else f'{hidden} classes'} that the rule hides ({rare})"
    if told is None:
        return Verdict.INCONCLUSIVE, (
            f"{_who(found)} gives no errors for its counts here, so that nobody can say what it "
            f"tells of {them}"
        )
    if told:
        which = them if one else f"{told} of {them}"
        if told == hidden and not one:
            which = f"all {hidden} classes that the rule hides ({rare})"
        return Verdict.OVER_THRESHOLD, (
            f"{_who(found)} tells with confidence that {which} {'is' if told == 1 else 'are'} "
            "that small"
        )
    doubts = _doubts(found, Flag.COUNTS_NOT_SURE)
    text = f"{_who(found)} tells {'nothing' if one else 'none'} of {them} with confidence"
    if doubts:
        return Verdict.INCONCLUSIVE, f"{text}, but its failure proves nothing here ({doubts})"
    return Verdict.AUDITED, f"{text}; a stronger attack may tell more"


def _misfit(found: Restoration, scored: Score, rule: Rule) -> Judgment:
    """Judge a result that contradicts the labels it is scored by."""
    reason = Flag.LABELS_DO_NOT_FIT.text
    if found.certified and _proof_is_over(found, rule):
        return Verdict.OVER_THRESHOLD, (
            f"{_who(found)} restored all labels that were trained on, which is proven; {reason}"
        )
    value = _measured(scored, rule)
    if rule.threshold is not None and value is not None and value > rule.threshold:
        return Verdict.OVER_THRESHOLD, (
            f"{_who(found)} restored {scored.accuracy:.1%} of the labels given, above the limit "
            f"of {rule.threshold:.1%}; {reason}"
        )
    return Verdict.INCONCLUSIVE, f"there is no score to judge by: {reason}"


def _proof_is_over(found: Restoration, rule: Rule) -> bool:
    """Whether proven counts alone are more than may leave."""
    if rule.measure == "small-cells":
        return found.counts is not None and bool((found.counts < rule.floor).any())
    if rule.measure == "exact":
        return True
    return rule.threshold is not None and rule.threshold < 1.0


def _without_labels(found: Restoration, rule: Rule, expected: dict[str, Any] | None) -> Judgment:
    restored = _restored(found)
    # Under a limit, what was missed counts.
    doubts = (_doubts if rule.has_limit else _doubts_of_finding)(found)
    if found.certified and rule.has_limit and _proof_is_over(found, rule):
        return Verdict.OVER_THRESHOLD, f"{restored}; the limit is {rule.limit}"
    if rule.measure == "small-cells":
        return _cells_without_labels(found, rule)
    if rule.threshold is not None:
        return Verdict.INCONCLUSIVE, (
            f"{restored}{_by_own_errors(expected)}; the limit is {rule.limit}, and without the "
            "true labels there is nothing to measure that by"
        )
    if rule.has_limit and found.counts is None:
        return Verdict.INCONCLUSIVE, f"{restored}; the limit is {rule.limit}, which needs counts"
    if doubts:
        own = _by_own_errors(expected)
        return Verdict.INCONCLUSIVE, f"{restored}{own}; that is not to be relied on ({doubts})"
    return Verdict.AUDITED, (
        f"{restored}{_by_own_errors(expected)}; no verdict of an audit is proof of safety"
    )


def _cells_without_labels(found: Restoration, rule: Rule) -> Judgment:
    """What an attack says of small classes, by its own standard errors alone."""
    bounds = count_bounds(found)
    if bounds is None:
        return Verdict.INCONCLUSIVE, (
            f"{_who(found)} gives no errors for its counts here, so that nobody can say which of "
            "them it tells"
        )
    few, none = small_cells(bounds, rule.floor)
    told, rare = int((few | none).sum()), f"fewer than {rule.floor} samples, or none"
    doubts = (_doubts_of_finding if told else _doubts)(found, Flag.COUNTS_NOT_SURE)
    classes = "class" if told == 1 else "classes"
    text = f"by its own standard errors {_who(found)} tells {told or 'no'} {classes} with {rare}"
    if doubts:
        return Verdict.INCONCLUSIVE, f"{text}; that is not to be relied on ({doubts})"
    if told:
        return Verdict.OVER_THRESHOLD, text
    return Verdict.AUDITED, f"{text}; a stronger attack may tell more"


def _doubts(found: Restoration, *but: Flag) -> str:
    """The names of the flags under which a low score is no evidence; empty without one."""
    names = [flag.name.lower() for flag in found.flags if flag in UNRELIABLE.difference(but)]
    return f"{'flag' if len(names) == 1 else 'flags'} {', '.join(names)}" if names else ""


def _doubts_of_finding(found: Restoration, *but: Flag) -> str:
    """The same of what was found, and not of what was missed.

    Where the time limit ended a search, a longer one could find more. A proof, and the errors that
    an attack measured on what it had, hold without that.
    """
    if found.certified:
        return ""
    return _doubts(found, *but, *(() if found.standard_errors is None else (Flag.TIME_LIMIT,)))


def _by_own_errors(expected: dict[str, Any] | None) -> str:
    if expected is None or expected["by"] == "certificate":
        return ""
    return (
        f"; by the attack's own standard errors {expected['accuracy']:.1%} of them are expected to "
        f"be right, where a guess gets {expected['guess']:.1%}"
    )


def _restored(found: Restoration) -> str:
    """What was restored, where no true labels say how much of it is right."""
    present = int(found.present.sum())
    classes = f"{present} {'class' if present == 1 else 'classes'}"
    if found.counts is None:
        what = "which classes are present" if found.proportions is None else "the share of each"
        return f"{_who(found)} restored {what}: {classes}, not compared with true labels"
    amount = int(found.counts.sum())
    labels = f"{amount} {'label' if amount == 1 else 'labels'} of {classes}"
    if Flag.UNKNOWN_BATCH_SIZE in found.flags:
        labels = f"{labels}, or each of them equally often"
    if found.certified:
        return f"{_who(found)} restored {labels}, and they are proven: they rebuild the gradient"
    return f"{_who(found)} restored {labels}, not compared with true ones"
