"""The verdict of an audit, and the reason for it in one sentence."""

from enum import Enum

from labelleak.metrics import Score
from labelleak.restoration import Flag, Restoration


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


def judge(found: Restoration, scored: Score | None, threshold: float | None) -> tuple[Verdict, str]:
    """Judge the result of an attack.

    No verdict says that the labels are safe: a stronger attack may restore more.

    Args:
        found: What the attack restored.
        scored: Its score against the true labels; None where they are not known.
        threshold: Largest accuracy that is acceptable, in [0, 1], or None.

    Returns:
        The verdict, and the reason for it.
    """
    doubts = "; ".join(flag.text for flag in found.flags) if found.unreliable else ""
    if scored is not None and scored.accuracy is not None:
        restored = f"{found.attack} restored {scored.accuracy:.1%} of the labels"
        if Flag.LABELS_DO_NOT_FIT in found.flags:
            return _judge_misfit(found, scored.accuracy, threshold)
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


def _judge_misfit(
    found: Restoration, accuracy: float, threshold: float | None
) -> tuple[Verdict, str]:
    """Judge a result that contradicts the labels it is scored by."""
    reason = Flag.LABELS_DO_NOT_FIT.text
    if found.certified and threshold is not None and threshold < 1.0:
        return Verdict.OVER_THRESHOLD, (
            f"{found.attack} restored all labels that were trained on, which is proven; {reason}"
        )
    if threshold is not None and accuracy > threshold:
        return Verdict.OVER_THRESHOLD, (
            f"{found.attack} restored {accuracy:.1%} of the labels given, above {threshold:.1%}; "
            f"{reason}"
        )
    return Verdict.INCONCLUSIVE, f"there is no score to judge by: {reason}"


def _restored(found: Restoration) -> str:
    """What was restored, where no true labels say how much of it is right."""
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
