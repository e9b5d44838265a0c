"""What an attack is, and the table of all attacks by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from labelleak.observation import Observation
from labelleak.restoration import Restoration


class Need(Enum):
    """Something an attack cannot do without; the value says how to provide it."""

    BIAS = "the final layer's bias and its gradient"
    MODEL = "the whole model (model=...)"

    def is_met(self, observation: Observation) -> bool:
        """Whether the observation holds it."""
        return observation.has_bias if self is Need.BIAS else observation.model is not None


class Gives(Enum):
    """What an attack concludes."""

    SET = "set"
    COUNTS = "counts"
    EMBEDDINGS = "class embeddings"
    PROBABILITIES = "class probabilities"


RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Restoration])


@dataclass(frozen=True)
class Attack:
    """One registered attack.

    Attributes:
        name: Name to ask for it by.
        title: Name in the literature.
        needs: What the observation must hold.
        gives: What the restoration holds.
        assumes: What must be true of the network or the batch for the result to be right.
        reference: Paper and place in it.
        rule: The function that computes it; hyper-parameters are its keyword arguments.
    """

    name: str
    title: str
    needs: tuple[Need, ...]
    gives: tuple[Gives, ...]
    assumes: str
    reference: str
    rule: Callable[..., Restoration]


_ATTACKS: dict[str, Attack] = {}


def register(
    name: str,
    *,
    title: str,
    needs: tuple[Need, ...] = (),
    gives: tuple[Gives, ...],
    assumes: str,
    reference: str,
) -> Callable[[RuleFunction], RuleFunction]:
    """Enter a rule in the table of attacks under a name of its own."""

    def enter(rule: RuleFunction) -> RuleFunction:
        if name in _ATTACKS:
            raise ValueError(f"an attack named {name!r} is registered already")
        _ATTACKS[name] = Attack(name, title, needs, gives, assumes, reference, rule)
        return rule

    return enter


def attacks() -> Mapping[str, Attack]:
    """All registered attacks by name, a read-only view."""
    return MappingProxyType(_ATTACKS)
