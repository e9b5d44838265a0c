"""Virtual clients that all real clients of a round share."""

from typing import Any

from labelleak.attacks.virtual.simulation import Simulations
from labelleak.attacks.virtual.without_data import MadeUpClients


def shared_by(attack: str) -> dict[str, Any]:
    """Keyword arguments by which the clients of a round share virtual clients.

    Args:
        attack: Name of the attack; others than ``"virtual"`` and ``"synthetic"`` share none.

    Examples:
        >>> list(shared_by("virtual")), list(shared_by("pooled"))
        (['shared'], [])
    """
    makers: dict[str, type] = {"virtual": Simulations, "synthetic": MadeUpClients}
    return {"shared": makers[attack]()} if attack in makers else {}
