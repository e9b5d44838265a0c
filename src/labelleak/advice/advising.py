"""Try on one update what a site could change, and say what each change costs and buys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from labelleak._version import __version__
from labelleak.advice.client import RETRAINED, LocalClient, ceiling_of, retrainings
from labelleak.advice.treatments import treatments
from labelleak.advice.trials import Change, Judging, Untried
from labelleak.audit.record import AuditRecord
from labelleak.audit.rule import Measure
from labelleak.audit.running import audit_observation, checked_rule
from labelleak.observation import Observation

SCHEMA = "labelleak/advice/1"
# A larger epsilon is said to be weak beside every figure.
_WEAKEST_BOUND = 10.0


@dataclass(frozen=True)
class Advice:
    """What an update gives away as it is, and after each change that was tried.

    Attributes:
        plain: The audit of the update as it is.
        changes: What was tried, in the order of what is left of the update, the most first.
        untried: What could not be tried, and why.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> seen = labelleak.capture(
        ...     torch.nn.Linear(20, 5), torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        ... )
        >>> advice = advise(seen, torch.tensor([3, 2, 0, 2, 1]))
        >>> advice.plain.verdict, "noise" in {change.name for change in advice.changes}
        ('over threshold', True)
    """

    plain: AuditRecord
    changes: tuple[Change, ...]
    untried: tuple[Untried, ...]

    @property
    def cheapest(self) -> Change | None:
        """The change that leaves most of the update and is within the limit without a doubt."""
        return next((one for one in self.changes if one.passed), None)

    @property
    def summary(self) -> str:
        """What to take from it, in one sentence."""
        if self.plain.verdict == "audited":
            return "the update is within the limit as it is: no change is needed for that"
        best = self.cheapest
        if self.plain.true_counts is None:
            return (
                "without labels nothing here is measured: what would be told is by the attack's "
                "own standard errors (give --labels to judge the changes)"
            )
        if best is None:
            doubtful = [one.name for one in self.changes if one.verdict == "inconclusive"]
            named = ", ".join(dict.fromkeys(doubtful))
            rest = f"{len(doubtful)} are inconclusive ({named}); " if doubtful else ""
            return (
                "no change that was tried is sure to keep this update within the limit; "
                f"{rest}what bounds every attack is differential privacy with a small epsilon"
                f"{self._price_of_privacy}"
            )
        kept = "" if best.cosine is None else f", with a cosine of {best.cosine:.2f} to the plain"
        return (
            f"the cheapest change that is within the limit: {best.name}, {best.setting}{kept}; "
            "measured on this update, and on no other"
        )

    @property
    def _price_of_privacy(self) -> str:
        """What the least noise that bounds every attack leaves of this update."""
        bounding = [one for one in self.changes if one.epsilon and one.epsilon <= _WEAKEST_BOUND]
        if not bounding:
            return ""
        least = max(bounding, key=lambda one: one.epsilon or 0.0)
        left = max(0.0, least.cosine or 0.0)
        return f"; noise for epsilon {least.epsilon:.3g} leaves a cosine of {left:.2f} here"

    def as_dict(self) -> dict[str, Any]:
        """The advice as plain data, schema ``labelleak/advice/1``."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "summary": self.summary,
            "audit": self.plain.as_dict(),
            "changes": [change.as_dict() for change in self.changes],
            "untried": [asdict(one) for one in self.untried],
        }


def advise(
    observation: Observation,
    true_counts: Int[Tensor, " classes"] | None = None,
    *,
    client: LocalClient | None = None,
    attack: str = "auto",
    measure: Measure | None = None,
    threshold: float | None = None,
    floor: int = 10,
    prior: Sequence[float] | None = None,
    time_limit: float = 1.0,
    source: Mapping[str, Any] | None = None,
    progress: Callable[[], object] | None = None,
) -> Advice:
    """Audit an update again after each change that a site could make.

    Noise, clipping, sparsification, quantization and a bias kept local are tried on the update
    alone. A larger batch, more local steps and a later round need the client.

    Args:
        observation: The update as it is.
        true_counts: The counts behind it, int64, shape (classes,). Without them the figures are
            what the attack says of itself.
        client: The model and the data behind it; needs `true_counts`.
        attack: Registered name, or ``"auto"``.
        measure: What is judged, see `labelleak.audit.Rule`; None for advantage.
        threshold: For shares, how much may leave; None for 0.5.
        floor: For small cells, the smallest count that may be told.
        prior: Share of each class as the public knows it.
        time_limit: Seconds for each audit.
        source: Where the observation is from, for the record.
        progress: Called after every audit.

    Returns:
        The advice.

    Raises:
        InvalidObservation: A value is impossible, or the client is not the one behind the update.
        MissingKnowledge: The observation lacks what the attack needs.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> seen = labelleak.capture(
        ...     torch.nn.Linear(20, 5), torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        ... )
        >>> advise(seen).untried[-1].name
        'batch size, local steps, a later round'
    """
    rule = checked_rule(measure or "advantage", threshold, floor, prior, observation.classes)
    rule = rule.with_usual_limit()
    ceiling = None
    if client is not None and true_counts is not None:
        ceiling = ceiling_of(observation, client, true_counts)
    plain = audit_observation(
        observation,
        attack,
        true_counts=true_counts,
        time_limit=time_limit,
        ceiling=ceiling,
        source=source,
        **vars(rule),
    )
    judging = Judging(observation, rule, attack, time_limit)
    tried: list[Change | Untried] = []
    for one in treatments(judging, true_counts):
        tried.append(one)
        _tell(progress)
    if client is None or true_counts is None:
        why = (
            "they need the model and the data behind the update, and its labels (--model, --data "
            "and --labels)"
        )
        tried.append(Untried(RETRAINED, why))
    else:
        for one in retrainings(judging, client, true_counts):
            tried.append(one)
            _tell(progress)
    changes = [one for one in tried if isinstance(one, Change)]
    changes.sort(key=lambda one: -2.0 if one.cosine is None else one.cosine, reverse=True)
    return Advice(plain, tuple(changes), tuple(one for one in tried if isinstance(one, Untried)))


def _tell(progress: Callable[[], object] | None) -> None:
    if progress is not None:
        progress()
