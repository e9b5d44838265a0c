"""Score what was restored, and judge it: of one update, or of several rounds together."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from labelleak.audit.expected import expected_score
from labelleak.audit.rule import Rule
from labelleak.audit.verdict import Verdict, judge
from labelleak.cells import hidden_cells
from labelleak.metrics import Score, score
from labelleak.restoration import Restoration


@dataclass(frozen=True, eq=False)
class Judged:
    """A restoration's score and verdict.

    Attributes:
        scored: Its score; None without true labels, or where all true counts are zero.
        expected: What it tells by its own account; None where there are true labels.
        hidden: Number of classes that a rule of small cells hides; None without true labels.
        verdict: The verdict.
        reason: Why, in one sentence.
    """

    scored: Score | None
    expected: dict[str, Any] | None
    hidden: int | None
    verdict: Verdict
    reason: str


def judged_by(
    found: Restoration, true_counts: Int[Tensor, " classes"] | None, rule: Rule
) -> Judged:
    """Score a restoration, and judge it by a rule.

    Args:
        found: What was restored.
        true_counts: The site's own counts, or None.
        rule: What is measured, and how much of it may leave.

    Examples:
        >>> import torch
        >>> found = Restoration(torch.tensor([True, False]), torch.tensor([4, 0]), certified=True)
        >>> judged_by(found, torch.tensor([4, 0]), Rule("exact")).verdict.value
        'over threshold'
    """
    scored = expected = hidden = None
    if true_counts is None:
        expected = expected_score(found, prior=rule.prior, floor=rule.floor)
    else:
        hidden = int(hidden_cells(true_counts, rule.floor).sum())
        if true_counts.any():
            scored = score(found, true_counts, prior=rule.prior, floor=rule.floor)
    verdict, reason = judge(found, scored, rule, expected=expected, hidden=hidden)
    return Judged(scored, expected, hidden, verdict, reason)
