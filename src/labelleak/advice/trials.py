"""One change of an update: what it costs, and what an audit of the changed update finds."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from labelleak.audit.rule import Rule
from labelleak.audit.running import audit_observation
from labelleak.defenses.observations import as_sent
from labelleak.errors import LabelLeakError
from labelleak.observation import Observation


@dataclass(frozen=True)
class Change:
    """A change that was tried on the update, with its price and what it buys.

    Attributes:
        name: What was changed: ``"noise"``.
        setting: How far, in words.
        cosine: How much of the update is left: the cosine between the changed update and the plain
            one, over the tensors that were read; 1 for the same direction.
        epsilon: Of differential privacy for one release, where the change defines one; at delta
            1e-5, if every update is clipped to the length of this one.
        accuracy: Share of the labels that the attack restored from the changed update; by its own
            account where the true labels are not known; None where it gives neither.
        guess: The same of the best guess without the update.
        advantage: Share of what the guess leaves open that was restored.
        told: Number of small or absent classes told with confidence, or None.
        verdict: Value of a `labelleak.audit.Verdict`.
        reason: Why, in one sentence.
        flags: Names of the flags of the audit.
        attack: The attack that spoke.
        seconds: Time of the audit.

    Examples:
        >>> Change("noise", "little", 1.0, None, 0.5, 0.5, 0.0, None, "audited", "none").passed
        True
    """

    name: str
    setting: str
    cosine: float | None
    epsilon: float | None
    accuracy: float | None
    guess: float | None
    advantage: float | None
    told: int | None
    verdict: str
    reason: str
    flags: tuple[str, ...] = ()
    attack: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the audit found the changed update to be within the limit, without a doubt."""
        return self.verdict == "audited"

    def as_dict(self) -> dict[str, Any]:
        """The change as plain data."""
        return {**asdict(self), "flags": list(self.flags)}


@dataclass(frozen=True)
class Untried:
    """A change that could not be tried.

    Attributes:
        name: What would be changed.
        why: Why it could not be, and what it takes.

    Examples:
        >>> Untried("batch size", "it needs the model and the data").name
        'batch size'
    """

    name: str
    why: str


@dataclass(frozen=True, eq=False)
class Judging:
    """How every changed update is audited.

    Attributes:
        plain: The update as it is.
        rule: What is measured, and how much of it may leave.
        attack: Registered name, or ``"auto"``.
        time_limit: Seconds for each audit.
    """

    plain: Observation
    rule: Rule
    attack: str
    time_limit: float

    def try_change(
        self,
        name: str,
        setting: str,
        make: Callable[[], tuple[Observation, Int[Tensor, " classes"] | None]],
        epsilon: float | None = None,
    ) -> Change | Untried:
        """Make a changed update, audit it, and compare it with the plain one.

        Args:
            name: What is changed.
            setting: How far.
            make: The changed update, and the true counts behind it where they are known.
            epsilon: Of one release, where the change defines one.

        Returns:
            The change; why it could not be tried where there is an error in making or auditing it.
        """
        start = time.perf_counter()
        try:
            seen, counts = make()
            record = audit_observation(
                seen,
                self.attack,
                true_counts=counts,
                time_limit=self.time_limit,
                **vars(self.rule),
            )
        except (LabelLeakError, ValueError, RuntimeError) as error:
            return Untried(f"{name}, {setting}", " ".join(str(error).split()))
        figures = record.score or record.expected or {}
        return Change(
            name=name,
            setting=setting,
            cosine=cosine_of(self.plain, seen),
            epsilon=epsilon,
            accuracy=figures.get("accuracy"),
            guess=figures.get("guess"),
            advantage=figures.get("relative_advantage"),
            told=None if (told := figures.get("small_cells_told")) is None else int(told),
            verdict=record.verdict,
            reason=record.reason,
            flags=tuple(flag["name"] for flag in record.flags),
            attack=record.attack,
            seconds=time.perf_counter() - start,
        )


def cosine_of(plain: Observation, changed: Observation) -> float:
    """Cosine between two updates, over the whole update where both hold it, else over the head.

    A tensor that only one of them sends counts as zero in the other.
    """
    both_whole = plain.gradients is not None and changed.gradients is not None
    first, second = (sent_tensors(one, whole=both_whole) for one in (plain, changed))
    products = [float((first[n].double() * second[n].double()).sum()) for n in first if n in second]
    lengths = [
        float(torch.stack([t.double().square().sum() for t in part.values()]).sum().sqrt())
        for part in (first, second)
    ]
    scale = lengths[0] * lengths[1]
    return max(-1.0, min(1.0, sum(products) / scale)) if scale else 0.0


def sent_tensors(seen: Observation, *, whole: bool = True) -> dict[str, Tensor]:
    """The tensors of an update by name: all where they are known, else those of the head.

    Args:
        seen: The update.
        whole: Whether to give more than the head.
    """
    return as_sent(seen if whole else replace(seen, gradients=None))
